"""Cascades: what a stage was not sure of goes on to the next one, a child run that is named after its parent.

A stage's run completes only when its child is sealed: what it was not sure of has then been handed on, to the last
item. The child takes each item once, for an item's id is unique in a run; so handing on can be broken off and taken
up again anywhere, by whoever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger import reading
from infra.ledger.engine import disable_nested_loops
from infra.ledger.reading import RunStatus
from infra.ledger.rows import item_of, judged_of
from infra.metrics import Judged
from schemas.items import Item, Label
from schemas.runs import RunCounts, RunSpec, StageShare
from schemas.verdicts import CONTROVERSIAL, Outcome

_SUFFIX: Final = "-next"

WAITS_FOR_NEXT_STAGE: Final = f"""
    (runs.spec -> 'stages') IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM runs next WHERE next.id = runs.id || '{_SUFFIX}' AND next.state <> 'open')
"""  # noqa: S608 - our own
"""SQL over a row of `runs`: a later stage is still to take over what this one was not sure of."""


class Handover(NamedTuple):
    """What may go on to the next stage now, in the parent's order.

    Was looked for up to number `looked_to` of the parent; after the `last` nothing else can follow.
    """

    items: list[Item]
    looked_to: int
    last: bool


def next_id(run_id: str) -> str:
    """The id of the child run that takes over from a stage."""
    return run_id + _SUFFIX


def first_id(run_id: str) -> str:
    """The id of a cascade's first run, given any of its runs."""
    while run_id.endswith(_SUFFIX):
        run_id = run_id.removesuffix(_SUFFIX)
    return run_id


def is_later_stage(run_id: str, spec: RunSpec) -> bool:
    """Whether a run took over from another stage."""
    return spec.parent is not None and run_id == next_id(spec.parent)


def stages_of(engine: sa.Engine, run_id: str) -> list[RunStatus]:
    """The runs of a cascade that are there by now, the first first, given the first one's id."""
    found = [reading.run_status(engine, run_id)]
    while found[-1].spec.stages and (status := reading.find_run(engine, next_id(found[-1].id))) is not None:
        found.append(status)
    return found


def handing_on(engine: sa.Engine) -> list[str]:
    """The runs that have still something to hand on, or may have."""
    statement = sa.text(
        f"SELECT id FROM runs WHERE state IN ('open', 'sealed') AND {WAITS_FOR_NEXT_STAGE} ORDER BY created_at"  # noqa: S608
    )
    with engine.connect() as connection:
        return list(connection.scalars(statement))


def open_next(engine: sa.Engine, parent: RunStatus) -> RunSpec:
    """See that the next stage's run is there; returns what it is asked for."""
    spec, run_id = parent.spec.next_stage(parent.id), next_id(parent.id)
    statement = sa.text(
        """
        INSERT INTO runs (id, name, state, guard, lane, repeat, spec)
        VALUES (:id, :id, 'open', :guard, :lane, 1, CAST(:spec AS jsonb)) ON CONFLICT (id) DO NOTHING
        """
    )
    values = {"id": run_id, "guard": spec.guard, "lane": spec.lane.value, "spec": spec.model_dump_json()}
    with engine.begin() as connection:
        connection.execute(statement, values)
    return spec


def handover(engine: sa.Engine, parent: RunStatus, *, after: int, limit: int) -> Handover:
    """Items that the parent was not sure of and the child does not hold, in the parent's order.

    Looks past number `after` and past the child's last item, and up to the first item that is still pending: what
    settles out of turn waits for what came before it.
    """
    stage = parent.spec.stages[0]
    values = {
        "parent": parent.id,
        "child": next_id(parent.id),
        "after": after,
        "sure_below": stage.sure_below,
        "sure_above": stage.sure_above,
        "limit": limit,
    }
    with engine.connect() as connection:
        span = connection.execute(_SPAN, values).one()  # what settles after this look is beyond it
        seqs = connection.scalars(_UNSURE, {**values, **span._mapping}).all()
        rows = connection.execute(_ITEMS, {"parent": parent.id, "seqs": seqs}).all()
    full = len(seqs) == limit
    looked_to = seqs[-1] if full else span.until - 1
    return Handover([item_of(row) for row in rows], looked_to, last=bool(span.whole) and not full)


_SPAN: Final = sa.text(
    """
    SELECT greatest(CAST(:after AS bigint), coalesce((
               SELECT seq FROM items WHERE run_id = :parent AND item_id = (
                   SELECT item_id FROM items WHERE run_id = :child ORDER BY seq DESC LIMIT 1)), -1)) AS since,
           coalesce((SELECT min(first_seq) FROM chunks WHERE run_id = :parent AND settled < size), accepted) AS until,
           state <> 'open' AND settled = expected AS whole
    FROM runs WHERE id = :parent
    """
)
_UNSURE: Final = sa.text(
    """
    SELECT v.seq FROM verdicts v
    WHERE v.run_id = :parent AND v.seq > :since AND v.seq < :until
      AND NOT (v.outcome = 'scored' AND v.p_unsafe IS NOT NULL
               AND (v.p_unsafe <= :sure_below OR v.p_unsafe >= :sure_above))
    ORDER BY v.seq LIMIT :limit
    """
)
_ITEMS: Final = sa.text(
    "SELECT * FROM items WHERE run_id = :parent AND seq = ANY(CAST(:seqs AS bigint[])) ORDER BY seq"
)


_FINAL: Final = """
    SELECT DISTINCT ON (i.item_id) i.item_id, i.source, i.category, i.subcategory, i.truth, s.stage,
           v.outcome, v.label, v.p_unsafe, v.settled_at,
           :controversial = ANY(string_to_array(v.categories, ',')) AS controversial
    FROM unnest(CAST(:run_ids AS text[])) WITH ORDINALITY AS s(run_id, stage)
    JOIN items i ON i.run_id = s.run_id JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq
    ORDER BY i.item_id, v.outcome = 'scored' DESC, s.stage DESC
"""
"""Each item's verdict by the last stage that scored it; where none did, the last stage's outcome."""


def final_rows(engine: sa.Engine, run_ids: Sequence[str], *, fetch: int = 5_000) -> Iterator[Judged]:
    """Every item of a cascade with its final verdict, streamed highest p_unsafe first."""
    statement = sa.text(f"SELECT * FROM ({_FINAL}) AS final ORDER BY p_unsafe DESC NULLS LAST")  # noqa: S608 - our own
    with engine.connect() as connection:
        disable_nested_loops(connection)
        values = {"run_ids": list(run_ids), "controversial": CONTROVERSIAL}
        for row in connection.execution_options(yield_per=fetch).execute(statement, values):
            yield judged_of(row)


class Ends(NamedTuple):
    """How a cascade's items ended.

    `by_stage` counts items by the stage whose verdict is final (from 1), `seconds` run to the last verdict.
    """

    counts: RunCounts
    by_stage: dict[int, int]
    seconds: float


def ends_of(engine: sa.Engine, run_ids: Sequence[str]) -> Ends:
    """Count a cascade's final verdicts."""
    statement = sa.text(
        f"""
        SELECT stage, outcome, count(*) AS n FROM ({_FINAL}) AS final GROUP BY stage, outcome
        """  # noqa: S608 - our own
    )
    span = sa.text(
        """
        SELECT extract(epoch FROM max(coalesce(settled_at, created_at)) - min(created_at))::float8 FROM runs
        WHERE id = ANY(CAST(:run_ids AS text[]))
        """
    )
    with engine.connect() as connection:
        disable_nested_loops(connection)
        values = {"run_ids": list(run_ids), "controversial": CONTROVERSIAL}
        rows = connection.execute(statement, values).all()
        seconds = float(connection.scalar(span, values) or 0)
    accepted = reading.run_status(engine, run_ids[0]).counts.accepted
    by_outcome = {outcome: sum(row.n for row in rows if row.outcome == outcome) for outcome in Outcome}
    settled = sum(by_outcome.values())
    counts = RunCounts(
        accepted=accepted,
        settled=settled,
        scored=by_outcome[Outcome.SCORED],
        unparseable=by_outcome[Outcome.UNPARSEABLE],
        dead=by_outcome[Outcome.DEAD],
        pending=accepted - settled,
    )
    by_stage = {stage: sum(row.n for row in rows if row.stage == stage) for stage in {row.stage for row in rows}}
    return Ends(counts, by_stage, seconds)


def share_of(engine: sa.Engine, status: RunStatus, settled: int) -> StageShare:
    """What one stage did; `settled` is how many of its verdicts are final."""
    counts = status.counts
    return StageShare(
        run_id=status.id,
        guard=status.spec.guard,
        judged=counts.settled,
        settled=settled,
        unparseable=counts.unparseable,
        dead=counts.dead,
        device_s=device_seconds(engine, status.id),
    )


def device_seconds(engine: sa.Engine, run_id: str) -> float:
    """Seconds in which devices held work of a run, added up over the devices.

    A chunk is held from its settlement back over its time on the device. Chunks overlap on a device, so what counts
    is the union of their times, worker by worker. Time on a device that other runs shared counts in full.
    """
    statement = sa.text(
        """
        WITH held AS (
            SELECT c.worker, v.settled_at - make_interval(secs => c.device_s::float8) AS since, v.settled_at AS until
            FROM chunks c JOIN verdicts v ON v.run_id = c.run_id AND v.seq = c.first_seq AND v.iteration = c.iteration
            WHERE c.run_id = :run_id AND c.device_s IS NOT NULL
        ), told AS (
            SELECT since, until, max(until) OVER (
                PARTITION BY worker ORDER BY since, until ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM held
        )
        SELECT coalesce(sum(extract(epoch FROM until - greatest(since, coalesce(before, since)))), 0)::float8
        FROM told WHERE before IS NULL OR until > before
        """
    )
    with engine.connect() as connection:
        return float(connection.scalar(statement, {"run_id": run_id}) or 0)


class PairedLabel(NamedTuple):
    """An item's final label in a cascade beside another run's, and its truth."""

    truth: Label | None
    label: Label | None
    other: Label | None


def paired_labels(engine: sa.Engine, run_ids: Sequence[str], other: str) -> list[PairedLabel]:
    """The items that a cascade and another run both hold with the same content, with both labels."""
    statement = sa.text(
        f"""
        SELECT f.truth, f.label, v.label AS other FROM ({_FINAL}) AS f
        JOIN items a ON a.run_id = :first AND a.item_id = f.item_id
        JOIN items b ON b.run_id = :other AND b.item_id = f.item_id AND b.content_hash = a.content_hash
        JOIN verdicts v ON v.run_id = b.run_id AND v.seq = b.seq AND v.iteration = 0
        """  # noqa: S608 - our own
    )
    values = {"run_ids": list(run_ids), "first": run_ids[0], "other": other, "controversial": CONTROVERSIAL}
    with engine.connect() as connection:
        disable_nested_loops(connection)
        return [
            PairedLabel(*(Label(value) if value else None for value in row))
            for row in connection.execute(statement, values)
        ]
