"""What settled lately, counted by time and by what came of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import ledger_now

_TIMEOUT_MS: Final = 3_000
"""A picture is not worth more of the ledger's time."""

_COUNT: Final = sa.text(
    """
    SELECT floor(extract(epoch FROM v.settled_at) / :bar_s)::bigint AS bar, coalesce(v.label, v.outcome) AS kind,
           count(*) AS n
    FROM verdicts v
    WHERE v.settled_at >= to_timestamp(:since_s)
      AND (CAST(:tenant AS text) IS NULL OR v.run_id IN (SELECT id FROM runs WHERE spec->>'tenant' = :tenant))
    GROUP BY bar, kind
    """
)


class MixBar(NamedTuple):
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


def verdict_mix(engine: sa.Engine, tenant: str | None, *, bars: int, bar_s: int) -> list[MixBar]:
    """The last `bars` stretches of `bar_s` seconds, oldest first, the running one last; `tenant` None: of all tenants.

    Raises:
        sqlalchemy.exc.OperationalError: it took longer than a picture may.
    """
    last = int(ledger_now(engine) // bar_s)
    first = last - bars + 1
    found: dict[int, dict[str, int]] = {bar: {} for bar in range(first, last + 1)}
    with engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL statement_timeout = {_TIMEOUT_MS}"))
        for row in connection.execute(_COUNT, {"bar_s": bar_s, "since_s": first * bar_s, "tenant": tenant}):
            found.setdefault(row.bar, {})[row.kind] = row.n
    return [MixBar(datetime.fromtimestamp(bar * bar_s, UTC), **counts) for bar, counts in sorted(found.items())]
