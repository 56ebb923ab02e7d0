"""Child runs: what a parent run holds for another guard to judge, and the children it has. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.cascades import next_id
from infra.ledger.rows import item_of
from schemas.guards import Mode
from schemas.items import Item

_FETCH: Final = 2_000

_SETTLED: Final = """
    FROM items i WHERE i.run_id = :run_id
    AND (CAST(:since AS timestamptz) IS NULL OR EXISTS (
        SELECT 1 FROM verdicts v WHERE v.run_id = i.run_id AND v.seq = i.seq AND v.settled_at >= :since))
"""


class ItemCounts(NamedTuple):
    """How many items of a run are to be judged anew, and how many of them have lost their text to retention."""

    items: int
    scrubbed: int


def live_runs_since(engine: sa.Engine, since: datetime) -> list[str]:
    """The live runs in which anything settled since then, the oldest first."""
    statement = sa.text(
        """
        SELECT id FROM runs r WHERE lane = 'live' AND parent IS NULL
          AND EXISTS (SELECT 1 FROM verdicts v WHERE v.run_id = r.id AND v.settled_at >= :since) ORDER BY created_at
        """
    )
    with engine.connect() as connection:
        return list(connection.scalars(statement, {"since": since}))


def stock_of(engine: sa.Engine, run_id: str, since: datetime | None) -> ItemCounts:
    """Count what `items_of` would give, and what it could not."""
    statement = sa.text(f"SELECT count(*) AS items, count(*) FILTER (WHERE i.response = '') AS scrubbed {_SETTLED}")
    with engine.connect() as connection:
        return ItemCounts(*connection.execute(statement, {"run_id": run_id, "since": since}).one())


def items_of(engine: sa.Engine, run_id: str, since: datetime | None) -> Iterator[Item]:
    """The items of a run, or those settled since then, in their order, streamed."""
    statement = sa.text(f"SELECT i.* {_SETTLED} ORDER BY i.seq")
    with engine.connect() as connection:
        streamed = connection.execution_options(yield_per=_FETCH)
        for row in streamed.execute(statement, {"run_id": run_id, "since": since}):
            yield item_of(row)


def open_child(engine: sa.Engine, parent: str, guard: str, mode: Mode) -> str | None:
    """A child run whose submission was interrupted, to go on with; never a cascade's next stage."""
    statement = sa.text(
        "SELECT id FROM runs WHERE parent = :parent AND guard = :guard AND spec ->> 'mode' = :mode AND state = 'open' "
        "AND id <> :next ORDER BY created_at LIMIT 1"
    )
    with engine.connect() as connection:
        values = {"parent": parent, "guard": guard, "mode": mode.value, "next": next_id(parent)}
        found: str | None = connection.scalar(statement, values)
    return found
