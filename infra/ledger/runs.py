"""Runs: their status, their parents and children, and cascades, whose stages escalate to the next one.

A stage's run completes only when its child is sealed: what it was not sure of has then been escalated, to the last
item. The child takes each item once, for an item's id is unique in a run; so escalation can be broken off and taken
up again anywhere, by any collector.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import RunNotFoundError
from infra.ledger.engine import Row, autocommit, fetch_all, fetch_value, named
from infra.ledger.intake import open_run
from infra.ledger.items import item_of
from infra.ledger.tables import fingerprints, runs
from schemas.guards import Mode
from schemas.items import Item
from schemas.runs import InvalidRow, RunCounts, RunReport, RunSpec, RunState

_SUFFIX: Final = "-next"

WAITS_FOR_NEXT_STAGE: Final = f"""
    (runs.spec -> 'stages') IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM runs next WHERE next.id = runs.id || '{_SUFFIX}' AND next.state <> 'open')
"""  # noqa: S608 - our own
"""SQL over a row of `runs`: a later stage is still to take over what this one was not sure of."""

_COLUMNS: Final = """
    id, name, state, spec, accepted, settled, scored, unparseable, dead, accepted * repeat - settled AS pending,
    expected, cancelled, invalid_count, created_at, sealed_at, settled_at, completed_at, fingerprint,
    extract(epoch FROM coalesce(settled_at, clock_timestamp()) - created_at)::float8 AS seconds
"""


class RunStatus(NamedTuple):
    """A run as it stands now. `expected` is None until the run is sealed; `seconds` runs until all has settled."""

    id: str
    name: str
    state: RunState
    spec: RunSpec
    counts: RunCounts
    expected: int | None
    cancelled: bool
    invalid_count: int
    seconds: float
    created_at: datetime
    sealed_at: datetime | None
    completed_at: datetime | None
    fingerprint: str | None


class EscalationBatch(NamedTuple):
    """Items that may go on to the next stage now, in the parent's order.

    The parent was searched up to item number `searched_to`; after the `last` batch nothing else can follow.
    """

    items: list[Item]
    searched_to: int
    last: bool


def run_status(engine: sa.Engine, run: str) -> RunStatus:
    """A run by id or name.

    Raises:
        RunNotFoundError: there is no such run.
    """
    status = find_run(engine, run)
    if status is None:
        raise RunNotFoundError(f"no run {run!r}")
    return status


def find_run(engine: sa.Engine, run: str) -> RunStatus | None:
    """A run by id or name, or None where there is none."""
    found = _runs(engine, "WHERE id = :run OR name = :run ORDER BY id = :run DESC LIMIT 1", run=run)
    return found[0] if found else None


def list_runs(engine: sa.Engine, *, limit: int = 20, tenant: str | None = None) -> list[RunStatus]:
    """The newest runs, newest first; with `tenant`, its own alone."""
    mine = "WHERE CAST(:tenant AS text) IS NULL OR spec->>'tenant' = :tenant"
    return _runs(engine, f"{mine} ORDER BY created_at DESC LIMIT :limit", limit=limit, tenant=tenant)


def _runs(engine: sa.Engine, clauses: str, **values: object) -> list[RunStatus]:
    rows = fetch_all(engine, sa.text(f"SELECT {_COLUMNS} FROM runs {clauses}"), values)  # noqa: S608 - no user text in it
    return [
        RunStatus(**{**named(RunStatus, row), "state": RunState(row.state), "spec": spec, "counts": counts_of(row)})
        for row in rows
        for spec in (RunSpec.model_validate(row.spec, strict=False),)
    ]


def counts_of(row: Row) -> RunCounts:
    """The counters in a row of `runs`, with what is pending."""
    return RunCounts(**{name: row._mapping[name] for name in RunCounts.model_fields})


def stored_report(engine: sa.Engine, run_id: str) -> RunReport | None:
    """The report of a run that has ended, or None."""
    report = fetch_value(engine, sa.select(sa.cast(runs.c.report, sa.Text)).where(runs.c.id == run_id))
    return RunReport.model_validate_json(report) if report else None


def invalid_rows(engine: sa.Engine, run_id: str) -> tuple[InvalidRow, ...]:
    """The rows that were skipped when the run was submitted (the first thousand)."""
    return tuple(
        InvalidRow(**row)
        for row in fetch_value(engine, sa.select(runs.c.invalid_rows).where(runs.c.id == run_id)) or ()
    )


def fingerprint_body(engine: sa.Engine, digest: str | None) -> dict[str, str]:
    """A fingerprint's fields with its digest; empty where none is pinned."""
    if digest is None:
        return {}
    body = fetch_value(engine, sa.select(fingerprints.c.body).where(fingerprints.c.digest == digest))
    return {"digest": digest, **{key: str(value) for key, value in (body or {}).items()}}


def live_runs_since(engine: sa.Engine, since: datetime) -> list[str]:
    """The live runs in which anything settled since then, the oldest first."""
    statement = sa.text(
        """
        SELECT id FROM runs r WHERE lane = 'live' AND parent IS NULL
          AND EXISTS (SELECT 1 FROM verdicts v WHERE v.run_id = r.id AND v.settled_at >= :since) ORDER BY created_at
        """
    )
    return [row.id for row in fetch_all(engine, statement, {"since": since})]


def open_child(engine: sa.Engine, parent: str, guard: str, mode: Mode) -> str | None:
    """A child run whose submission was interrupted, to go on with; never a cascade's next stage."""
    of_parent = sa.and_(runs.c.parent == parent, runs.c.id != next_id(parent), runs.c.state == RunState.OPEN.value)
    same_guard = sa.and_(runs.c.guard == guard, runs.c.spec["mode"].astext == mode.value)
    statement = sa.select(runs.c.id).where(of_parent, same_guard).order_by(runs.c.created_at).limit(1)
    found: str | None = fetch_value(engine, statement)
    return found


def next_id(run_id: str) -> str:
    """The id of the child run that takes over from a stage."""
    return run_id + _SUFFIX


def first_id(run_id: str) -> str:
    """The id of a cascade's first run, given any of its runs."""
    while run_id.endswith(_SUFFIX):
        run_id = run_id.removesuffix(_SUFFIX)
    return run_id


def is_later_stage(run_id: str, spec: RunSpec) -> bool:
    """Tell whether a run took over from another stage."""
    return spec.parent is not None and run_id == next_id(spec.parent)


def stages_of(engine: sa.Engine, run_id: str) -> list[RunStatus]:
    """The runs of a cascade that are there by now, the first first, given the first one's id."""
    found = [run_status(engine, run_id)]
    while found[-1].spec.stages and (status := find_run(engine, next_id(found[-1].id))) is not None:
        found.append(status)
    return found


def escalating(engine: sa.Engine) -> list[str]:
    """The runs that still have something to escalate, or may have."""
    statement = f"SELECT id FROM runs WHERE state IN ('open', 'sealed') AND {WAITS_FOR_NEXT_STAGE} ORDER BY created_at"  # noqa: S608
    return [row.id for row in fetch_all(engine, sa.text(statement))]


def open_next(engine: sa.Engine, parent: RunStatus) -> RunSpec:
    """See that the next stage's run is there; returns what it is asked for."""
    spec, run_id = parent.spec.next_stage(parent.id), next_id(parent.id)
    open_run(engine, run_id, run_id, spec)
    return spec


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
               AND (v.p_unsafe <= :accept_below OR v.p_unsafe >= :accept_above))
    ORDER BY v.seq LIMIT :limit
    """
)
_ITEMS: Final = sa.text(
    "SELECT * FROM items WHERE run_id = :parent AND seq = ANY(CAST(:seqs AS bigint[])) ORDER BY seq"
)


def next_escalation(engine: sa.Engine, parent: RunStatus, *, after: int, limit: int) -> EscalationBatch:
    """Items that the parent was not sure of and the child does not hold, in the parent's order.

    Searches past number `after` and past the child's last item, up to the first item that is still pending: what
    settles out of turn waits for what came before it.
    """
    stage = parent.spec.stages[0]
    thresholds = {"accept_below": stage.sure_below, "accept_above": stage.sure_above}
    values = {"parent": parent.id, "child": next_id(parent.id), "after": after, **thresholds, "limit": limit}
    with autocommit(engine) as connection:
        # The span comes first: what settles after it was read lies beyond it, and is found by the next search.
        span = connection.execute(_SPAN, values).one()
        seqs = connection.scalars(_UNSURE, {**values, **span._mapping}).all()
        rows = connection.execute(_ITEMS, {"parent": parent.id, "seqs": seqs}).all()
    full = len(seqs) == limit
    searched_to = seqs[-1] if full else span.until - 1
    return EscalationBatch([item_of(row) for row in rows], searched_to, last=bool(span.whole) and not full)
