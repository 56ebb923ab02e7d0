"""What waits in the ledger, for those who watch: pending items by guard and lane, webhooks, the dead. Changes nothing.

Asked again and again, so it reads partial indexes over what is unfinished and the runs' counters, never the verdicts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.recovery import LaneKey
from schemas.messages import Lane

_WITHIN: Final = sa.text("SET LOCAL statement_timeout = '2500ms'")
"""A look that takes longer is given up: watching must not become a load."""

_PENDING: Final = sa.text(
    """
    SELECT r.guard, r.lane, sum(c.size - c.settled)::bigint AS items,
           extract(epoch FROM clock_timestamp() - min(c.enqueued_at))::float8 AS oldest_age_s
    FROM chunks c JOIN runs r ON r.id = c.run_id WHERE c.settled < c.size GROUP BY r.guard, r.lane
    """
)
_LETTERS: Final = sa.text(
    """
    SELECT count(*) AS pending, extract(epoch FROM now() - min(o.next_at) FILTER (
               WHERE e.disabled_at IS NULL AND (e.paused_until IS NULL OR e.paused_until <= now())))::float8 AS age_s
    FROM outbox o LEFT JOIN webhook_endpoints e ON e.id = o.endpoint_id WHERE o.state = 'pending'
    """
)
_DEAD: Final = sa.text("SELECT coalesce(sum(dead), 0)::bigint FROM runs")


class Pending(NamedTuple):
    """One lane's items that are not settled, and seconds since the oldest was enqueued (last, if it was lost)."""

    items: int
    oldest_age_s: float


class Backlog(NamedTuple):
    """`webhooks_due_age_s`: how long the oldest webhook that a sender may take has been due; 0 where none is."""

    pending: dict[LaneKey, Pending]
    webhooks: int
    webhooks_due_age_s: float
    dead: int


def read_backlog(engine: sa.Engine) -> Backlog:
    """Look once.

    Raises:
        sqlalchemy.exc.DBAPIError: the ledger is away, or did not answer in time.
    """
    with engine.begin() as connection:
        connection.execute(_WITHIN)
        pending = {
            LaneKey(row.guard, Lane(row.lane)): Pending(row.items, max(0.0, row.oldest_age_s))
            for row in connection.execute(_PENDING)
        }
        letters = connection.execute(_LETTERS).one()
        dead = connection.scalar(_DEAD)
    return Backlog(pending, letters.pending, max(0.0, letters.age_s or 0.0), int(dead or 0))
