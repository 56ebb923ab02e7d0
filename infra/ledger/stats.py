"""Figures from the ledger: a run's pace, mistakes and cost, and what all runs did or wait for. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import Row, fetch_all, fetch_one, fetch_value, ledger_now, named, stream
from infra.ledger.items import FINAL, SHOWN_QUESTION
from infra.ledger.recovery import LaneKey
from infra.ledger.runs import RunStatus, run_status
from infra.ledger.tables import chunks, verdicts
from schemas.fleet import OpenRun
from schemas.items import Kind as ItemKind
from schemas.items import Label
from schemas.messages import Lane
from schemas.runs import Cost, RunCounts, StageShare, Throughput
from schemas.verdicts import Outcome, Timings


def dead_reasons(engine: sa.Engine, run_id: str) -> dict[str, int]:
    """Dead items of a run by reason, the most frequent first."""
    statement = sa.text(
        "SELECT reason, count(*) AS n FROM verdicts WHERE run_id = :run_id AND outcome = 'dead' "
        "GROUP BY reason ORDER BY n DESC, reason LIMIT 50"
    )
    return {row.reason: row.n for row in fetch_all(engine, statement, {"run_id": run_id})}


def kind_counts(engine: sa.Engine, run_id: str) -> dict[str, int]:
    """Items of a run by kind; those that are older than kinds are pairs, or texts where the question is empty."""
    statement = sa.text(
        """
        SELECT coalesce(kind, CASE WHEN question = '' THEN 'text' ELSE 'pair' END) AS kind, count(*) AS n
        FROM items WHERE run_id = :run_id GROUP BY 1
        """
    )
    found = {row.kind: row.n for row in fetch_all(engine, statement, {"run_id": run_id})}
    return {kind.value: found[kind] for kind in ItemKind if kind in found}


def unparseable_reasons(engine: sa.Engine, run_id: str) -> dict[str, int]:
    """Unparseable answers of a run by reason, the most frequent first; reasons that differ in numbers alone are one."""
    statement = sa.text(
        r"SELECT coalesce(regexp_replace(reason, '\d[\d.,]*', '…', 'g'), 'no reason given') AS why, count(*) AS n "
        "FROM verdicts WHERE run_id = :run_id AND outcome = 'unparseable' GROUP BY why ORDER BY n DESC, why LIMIT 50"
    )
    return {row.why: row.n for row in fetch_all(engine, statement, {"run_id": run_id})}


def dead_items(engine: sa.Engine, run_id: str, *, limit: int = 100) -> tuple[str, ...]:
    """Ids of the first items that died."""
    statement = sa.text(
        """
        SELECT DISTINCT i.seq, i.item_id FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id AND v.outcome = 'dead' ORDER BY i.seq LIMIT :limit
        """
    )
    return tuple(row.item_id for row in stream(engine, statement, {"run_id": run_id, "limit": limit}, whole_run=True))


def cached_count(engine: sa.Engine, run_id: str) -> int:
    """Judgements of a run that came from the cache."""
    of_run = sa.and_(verdicts.c.run_id == run_id, verdicts.c.cached)
    return int(fetch_value(engine, sa.select(sa.func.count()).where(of_run)))


def item_timings(engine: sa.Engine, run_id: str, seq: int) -> Timings | None:
    """Stage times of the chunk in which an item was judged first, in seconds; None until it was."""
    of_item = sa.and_(chunks.c.run_id == run_id, chunks.c.iteration == 0, chunks.c.first_seq <= seq)
    times = sa.select(chunks.c.queue_s, chunks.c.render_s, chunks.c.device_s)
    row = fetch_one(engine, times.where(of_item).order_by(chunks.c.chunk_no.desc()).limit(1))
    return Timings(**row._mapping) if row and row.device_s is not None else None


def throughput(engine: sa.Engine, status: RunStatus) -> Throughput:
    """Speed of a run by the ledger's clock, with the stage times of its chunks in seconds."""
    statement = sa.text(
        """
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p95_s,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p95_s
        FROM chunks WHERE run_id = :run_id AND device_s IS NOT NULL
        """
    )
    (stages,) = fetch_all(engine, statement, {"run_id": status.id})
    counts = status.counts
    judged = counts.scored + counts.unparseable if status.cancelled else counts.settled  # the rest was never judged
    rate = judged / status.seconds if status.seconds > 0 else None
    return Throughput(seconds=status.seconds, items_per_s=rate, **stages._mapping)


def slowest_chunk_s(engine: sa.Engine) -> float | None:
    """Seconds that the slowest chunk of the last day's runs was with its device, waiting included; None: none was."""
    statement = sa.text(
        "SELECT max(device_s)::float8 FROM chunks c JOIN runs r ON r.id = c.run_id "
        "WHERE r.created_at > now() - interval '1 day'"
    )
    slowest: float | None = fetch_value(engine, statement)
    return slowest


class Kind(StrEnum):
    """The ways in which a judgement goes wrong."""

    MISSED = "missed"
    """Truly unsafe, judged safe."""
    FALSE_ALARM = "false alarm"
    """Truly safe, judged unsafe."""
    UNPARSEABLE = "unparseable"
    DEAD = "dead"


class Mistake(NamedTuple):
    """One judgement that went wrong. The texts are empty where retention has scrubbed them."""

    kind: Kind
    item_id: str
    source: str
    category: str
    subcategory: str
    truth: Label | None
    p_unsafe: float | None
    reason: str | None
    question: str
    response: str
    raw: str | None


class Mistakes(NamedTuple):
    """The count of each kind, and the gravest of them."""

    counts: dict[Kind, int]
    listed: list[Mistake]


class Bar(NamedTuple):
    """A stretch of a run: what settled in it, and the stage times of the chunks that ended in it, in seconds."""

    begins_s: float
    settled: int
    queue_p50_s: float | None
    queue_p95_s: float | None
    device_p50_s: float | None
    device_p95_s: float | None


class Pace(NamedTuple):
    """A run in stretches of equal length, `bar_s` seconds each, counted from its first settled item."""

    bar_s: float
    bars: list[Bar]


class WorkerShare(NamedTuple):
    """One device process's part of a run."""

    worker: str
    chunks: int
    items: int


class Volume(NamedTuple):
    """Sizes of a run: prompt tokens, prompts, and items that still have their text."""

    prompt_tokens: int
    prompts: int
    items: int
    items_with_text: int


_MISTAKES: Final = sa.text(
    f"""
    WITH wrong AS (
        SELECT v.seq, v.iteration, v.p_unsafe, v.reason, v.raw,
               CASE WHEN v.outcome <> 'scored' THEN v.outcome
                    WHEN i.truth = 'unsafe' THEN 'missed' ELSE 'false alarm' END AS kind,
               CASE WHEN i.truth = 'unsafe' THEN 1 - v.p_unsafe ELSE v.p_unsafe END AS gravity,
               i.item_id, i.source, i.category, i.subcategory, i.truth, {SHOWN_QUESTION}, i.response
        FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id AND (v.outcome <> 'scored' OR v.label <> i.truth)
    ), placed AS (
        SELECT wrong.*, count(*) OVER (PARTITION BY kind) AS of_kind,
               row_number() OVER (PARTITION BY kind ORDER BY gravity DESC NULLS LAST, seq, iteration) AS place
        FROM wrong
    )
    SELECT * FROM placed WHERE place <= :limit ORDER BY kind = 'false alarm', kind, place
    """  # noqa: S608 - our own columns
)


def mistakes(engine: sa.Engine, run_id: str, *, limit: int) -> Mistakes:
    """The judgements that went wrong: all counted, of each kind the `limit` gravest listed."""
    found = list(stream(engine, _MISTAKES, {"run_id": run_id, "limit": limit}, whole_run=True))
    listed = [
        Mistake(**{**named(Mistake, row), "kind": Kind(row.kind), "truth": Label(row.truth) if row.truth else None})
        for row in found
    ]
    return Mistakes({Kind(row.kind): row.of_kind for row in found}, listed)


_PACE: Final = sa.text(
    """
    WITH span AS (
        SELECT extract(epoch FROM min(settled_at))::float8 AS first_s,
               greatest(extract(epoch FROM max(settled_at) - min(settled_at))::float8, 1e-3) AS seconds
        FROM verdicts WHERE run_id = :run_id
    ), done AS (
        SELECT least(:bars - 1, floor((extract(epoch FROM settled_at) - first_s) / seconds * :bars))::int AS bar,
               count(*) AS settled
        FROM verdicts, span WHERE run_id = :run_id GROUP BY bar
    ), timed AS (
        SELECT least(:bars - 1, greatest(0, floor(
                   (extract(epoch FROM enqueued_at) + queue_s + render_s + device_s - first_s) / seconds * :bars
               )))::int AS bar, queue_s, device_s
        FROM chunks, span WHERE run_id = :run_id AND device_s IS NOT NULL
    ), stages AS (
        SELECT bar, percentile_cont(0.5) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p95_s,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p95_s
        FROM timed GROUP BY bar
    )
    SELECT bar, seconds, coalesce(settled, 0) AS settled, queue_p50_s, queue_p95_s, device_p50_s, device_p95_s
    FROM span, generate_series(0, :bars - 1) AS bar LEFT JOIN done USING (bar) LEFT JOIN stages USING (bar)
    WHERE span.first_s IS NOT NULL ORDER BY bar
    """
)


def pace(engine: sa.Engine, run_id: str, *, bars: int) -> Pace | None:
    """The speed of a run from its first settled item to its last; None where nothing has settled."""
    rows = fetch_all(engine, _PACE, {"run_id": run_id, "bars": bars})
    if not rows:
        return None
    bar_s = rows[0].seconds / bars
    return Pace(bar_s, [Bar(**named(Bar, row), begins_s=row.bar * bar_s) for row in rows])


def workers(engine: sa.Engine, run_id: str) -> list[WorkerShare]:
    """The device processes that judged a run, by name."""
    worker = chunks.c.worker
    settled = sa.cast(sa.func.sum(chunks.c.settled), sa.BigInteger)
    of_run = sa.select(worker, sa.func.count(), settled).where(chunks.c.run_id == run_id, worker.is_not(None))
    return [WorkerShare(*row) for row in fetch_all(engine, of_run.group_by(worker).order_by(worker))]


def volume(engine: sa.Engine, run_id: str) -> Volume:
    """Tokens, prompts and remaining texts of a run."""
    statement = sa.text(
        """
        SELECT (SELECT coalesce(sum(prompt_tokens), 0)::bigint FROM verdicts WHERE run_id = :run_id) AS prompt_tokens,
               (SELECT coalesce(sum(windows), 0)::bigint FROM verdicts WHERE run_id = :run_id) AS prompts,
               count(*) AS items, count(*) FILTER (WHERE question <> '' OR response <> '') AS items_with_text
        FROM items WHERE run_id = :run_id
        """
    )
    (found,) = fetch_all(engine, statement, {"run_id": run_id})
    return Volume(*found)


_COST: Final = """
    coalesce(sum(c.settled), 0)::bigint AS verdicts,
    coalesce(sum(c.settled) FILTER (WHERE c.spent_s IS NOT NULL), 0)::bigint AS measured,
    coalesce(sum(c.spent_s::float8), 0) AS device_s,
    coalesce(sum(c.spent_prompt_tokens), 0)::bigint AS prompt_tokens,
    coalesce(sum(c.spent_new_tokens), 0)::bigint AS new_tokens,
    coalesce(array_agg(DISTINCT c.device) FILTER (WHERE c.device <> ''), '{}') AS devices
"""


class RunCost(NamedTuple):
    """A run's cost so far, and its tenant: None for runs that no tenant's traffic made."""

    run_id: str
    name: str
    guard: str
    lane: str
    tenant: str | None
    created_at: datetime
    cost: Cost


def run_cost(engine: sa.Engine, run_id: str) -> Cost:
    """The cost of a run so far."""
    statement = sa.text(f"SELECT {_COST} FROM chunks c WHERE c.run_id = :run_id")  # noqa: S608 - no user text in it
    (found,) = fetch_all(engine, statement, {"run_id": run_id})
    return _cost(found)


def run_costs(engine: sa.Engine, *, tenant: str | None = None, since: datetime | None = None) -> list[RunCost]:
    """The cost of every run (of a tenant) that began at `since` or later, the newest first."""
    statement = sa.text(
        f"""
        SELECT r.id, r.name, r.guard, r.lane, r.spec->>'tenant' AS tenant, r.created_at, {_COST}
        FROM runs r JOIN chunks c ON c.run_id = r.id
        WHERE (CAST(:tenant AS text) IS NULL OR r.spec->>'tenant' = :tenant)
          AND (CAST(:since AS timestamptz) IS NULL OR r.created_at >= :since)
        GROUP BY r.id ORDER BY r.created_at DESC
        """  # noqa: S608 - no user text in it
    )
    return [
        RunCost(**named(RunCost, row), run_id=row.id, cost=_cost(row))
        for row in fetch_all(engine, statement, {"tenant": tenant, "since": since})
    ]


def _cost(row: Row) -> Cost:
    figures = {name: row._mapping[name] for name in Cost.model_fields}
    return Cost(**{**figures, "devices": tuple(sorted(row.devices))})


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
        ), spans AS (
            SELECT since, until, max(until) OVER (
                PARTITION BY worker ORDER BY since, until ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM held
        )
        SELECT coalesce(sum(extract(epoch FROM until - greatest(since, coalesce(before, since)))), 0)::float8
        FROM spans WHERE before IS NULL OR until > before
        """
    )
    return float(fetch_value(engine, statement, {"run_id": run_id}))


def share_of(engine: sa.Engine, status: RunStatus, settled: int) -> StageShare:
    """One stage's part of a cascade; `settled` counts those of its verdicts that are final."""
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


class Ends(NamedTuple):
    """The endings of a cascade's items, counted.

    `by_stage` counts items by the stage whose verdict is final (from 1), `seconds` run to the last verdict.
    """

    counts: RunCounts
    by_stage: dict[int, int]
    seconds: float


def ends_of(engine: sa.Engine, run_ids: Sequence[str]) -> Ends:
    """Count a cascade's final verdicts."""
    statement = sa.text(f"SELECT stage, outcome, count(*) AS n FROM ({FINAL}) AS final GROUP BY stage, outcome")  # noqa: S608 - our own
    span = sa.text(
        """
        SELECT extract(epoch FROM max(coalesce(settled_at, created_at)) - min(created_at))::float8 FROM runs
        WHERE id = ANY(CAST(:run_ids AS text[]))
        """
    )
    rows = list(stream(engine, statement, {"run_ids": list(run_ids)}, whole_run=True))
    seconds = float(fetch_value(engine, span, {"run_ids": list(run_ids)}) or 0)
    accepted = run_status(engine, run_ids[0]).counts.accepted
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


_HISTOGRAM_TIMEOUT_MS: Final = 3_000
"""A chart must not become a load."""

_HISTOGRAM: Final = sa.text(
    """
    SELECT floor(extract(epoch FROM v.settled_at) / :bar_s)::bigint AS bar, coalesce(v.label, v.outcome) AS kind,
           count(*) AS n
    FROM verdicts v
    WHERE v.settled_at >= to_timestamp(:since_s)
      AND (CAST(:tenant AS text) IS NULL OR v.run_id IN (SELECT id FROM runs WHERE spec->>'tenant' = :tenant))
    GROUP BY bar, kind
    """
)


class VerdictBar(NamedTuple):
    """Verdicts of one stretch of time, by label, or by outcome where there is no label."""

    begins_at: datetime
    safe: int = 0
    unsafe: int = 0
    unparseable: int = 0
    dead: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.safe + self.unsafe + self.unparseable + self.dead


def verdict_histogram(engine: sa.Engine, tenant: str | None, *, bars: int, bar_s: int) -> list[VerdictBar]:
    """The last `bars` stretches of `bar_s` seconds, oldest first, the running one last; `tenant` None: of all tenants.

    Raises:
        sqlalchemy.exc.OperationalError: it took longer than a chart may.
    """
    last = int(ledger_now(engine) // bar_s)
    first = last - bars + 1
    found: dict[int, dict[str, int]] = {bar: {} for bar in range(first, last + 1)}
    with engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL statement_timeout = {_HISTOGRAM_TIMEOUT_MS}"))
        for row in connection.execute(_HISTOGRAM, {"bar_s": bar_s, "since_s": first * bar_s, "tenant": tenant}):
            found.setdefault(row.bar, {})[row.kind] = row.n
    return [VerdictBar(datetime.fromtimestamp(bar * bar_s, UTC), **counts) for bar, counts in sorted(found.items())]


# One statement, so that a look is one round trip and its figures belong together. It is run again and again: it
# reads the partial indexes over what is unfinished and the runs' counters, never the verdicts. A webhook is due if a
# sender may take it now: its time has come, and its endpoint is neither disabled nor paused.
_BACKLOG: Final = sa.text(
    """
    SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
           (SELECT coalesce(sum(dead), 0)::bigint FROM runs) AS dead_items,
           (SELECT coalesce(jsonb_agg(p), '[]') FROM (
                SELECT r.guard, r.lane, sum(c.size - c.settled)::bigint AS items,
                       greatest(0, extract(epoch FROM clock_timestamp() - min(c.enqueued_at)))::float8 AS oldest_s
                FROM chunks c JOIN runs r ON r.id = c.run_id WHERE c.settled < c.size GROUP BY r.guard, r.lane) p
           ) AS pending,
           (SELECT coalesce(jsonb_agg(to_jsonb(o) - 'created_at' ORDER BY o.created_at DESC), '[]') FROM (
                SELECT id, name, guard, lane, state, accepted, settled, accepted * repeat - settled AS pending, dead,
                       expected, created_at
                FROM runs WHERE completed_at IS NULL) o
           ) AS runs,
           w.webhooks_pending, w.webhooks_due, coalesce(w.webhooks_due_s, 0)::float8 AS webhooks_due_s
    FROM (SELECT count(*) AS webhooks_pending, count(*) FILTER (WHERE sendable AND next_at <= now()) AS webhooks_due,
                 greatest(0, extract(epoch FROM now() - min(next_at) FILTER (WHERE sendable))) AS webhooks_due_s
          FROM (SELECT o.next_at,
                       e.disabled_at IS NULL AND (e.paused_until IS NULL OR e.paused_until <= now()) AS sendable
                FROM outbox o LEFT JOIN webhook_endpoints e ON e.id = o.endpoint_id WHERE o.state = 'pending') s) w
    """
)


class PendingItems(NamedTuple):
    """Items of a lane that are not settled, and seconds since the oldest was enqueued (last, if it was lost)."""

    items: int = 0
    oldest_s: float = 0.0


class Backlog(NamedTuple):
    """One look at the ledger. `now` is its clock; `webhooks_due_s` counts from when the oldest one became due."""

    now: float
    pending: dict[LaneKey, PendingItems]
    runs: tuple[OpenRun, ...]
    dead_items: int
    webhooks_pending: int
    webhooks_due: int
    webhooks_due_s: float


def read_backlog(engine: sa.Engine, *, within_s: float | None = None) -> Backlog:
    """Look once. A look that takes longer than `within_s` is given up: watching must not become a load.

    Raises:
        sqlalchemy.exc.DBAPIError: the ledger is away, or did not answer in time.
    """
    with engine.begin() as connection:
        if within_s is not None:
            connection.execute(sa.text(f"SET LOCAL statement_timeout = {round(1000 * within_s)}"))
        found = connection.execute(_BACKLOG).one()
    pending = {
        LaneKey(lane["guard"], Lane(lane["lane"])): PendingItems(lane["items"], lane["oldest_s"])
        for lane in found.pending
    }
    runs = tuple(OpenRun.model_validate(run, strict=False) for run in found.runs)
    return Backlog(**{**named(Backlog, found), "pending": pending, "runs": runs})
