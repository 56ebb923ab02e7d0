"""What waits in the ledger, for those who watch: pending items by lane, open runs, webhooks, dead items."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from infra.ledger.recovery import LaneKey
from schemas.fleet import OpenRun
from schemas.messages import Lane

# One statement, so that a look is one round trip and its figures belong to one moment. It is run again and again: it
# reads the partial indexes over what is unfinished and the runs' counters, never the verdicts. A webhook is due if a
# sender may take it now: its time has come, and its endpoint is neither disabled nor paused.
_BACKLOG = sa.text(
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


class Pending(NamedTuple):
    """Items of a lane that are not settled, and seconds since the oldest was enqueued (last, if it was lost)."""

    items: int = 0
    oldest_s: float = 0.0


class Backlog(NamedTuple):
    """One look at the ledger. `now` is its clock; `webhooks_due_s` is how long the oldest one has been due."""

    now: float
    pending: dict[LaneKey, Pending]
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
    return Backlog(
        now=found.now,
        pending={
            LaneKey(row["guard"], Lane(row["lane"])): Pending(row["items"], row["oldest_s"]) for row in found.pending
        },
        runs=tuple(OpenRun.model_validate(run, strict=False) for run in found.runs),
        dead_items=found.dead_items,
        webhooks_pending=found.webhooks_pending,
        webhooks_due=found.webhooks_due,
        webhooks_due_s=found.webhooks_due_s,
    )
