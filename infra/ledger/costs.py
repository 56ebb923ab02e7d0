"""What judging cost, from the chunks' rows: device seconds and tokens by run. Knows no prices."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from schemas.runs import Cost

_COST: Final = """
    coalesce(sum(c.settled), 0)::bigint AS verdicts,
    coalesce(sum(c.settled) FILTER (WHERE c.spent_s IS NOT NULL), 0)::bigint AS measured,
    coalesce(sum(c.spent_s::float8), 0) AS device_s,
    coalesce(sum(c.spent_prompt_tokens), 0)::bigint AS prompt_tokens,
    coalesce(sum(c.spent_new_tokens), 0)::bigint AS new_tokens,
    coalesce(array_agg(DISTINCT c.device) FILTER (WHERE c.device <> ''), '{}') AS devices
"""


class RunCost(NamedTuple):
    """A run's cost so far, and whose it was. `tenant` is None for runs that nobody's traffic made."""

    run_id: str
    name: str
    guard: str
    lane: str
    tenant: str | None
    created_at: datetime
    cost: Cost


def run_cost(engine: sa.Engine, run_id: str) -> Cost:
    """What a run has cost so far."""
    statement = sa.text(f"SELECT {_COST} FROM chunks c WHERE c.run_id = :run_id")  # noqa: S608 - no user text in it
    with engine.connect() as connection:
        return _cost(connection.execute(statement, {"run_id": run_id}).mappings().one())


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
    with engine.connect() as connection:
        return [
            RunCost(row["id"], row["name"], row["guard"], row["lane"], row["tenant"], row["created_at"], _cost(row))
            for row in connection.execute(statement, {"tenant": tenant, "since": since}).mappings()
        ]


def _cost(row: sa.RowMapping) -> Cost:
    return Cost(
        verdicts=row["verdicts"],
        measured=row["measured"],
        device_s=row["device_s"],
        prompt_tokens=row["prompt_tokens"],
        new_tokens=row["new_tokens"],
        devices=tuple(sorted(row["devices"])),
    )
