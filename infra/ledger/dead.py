"""Items that died: which, of what, and their texts for another try."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import disable_nested_loops
from infra.ledger.rows import item_of
from schemas.items import Item

_FETCH: Final = 1_000


class DeadItem(NamedTuple):
    """An item that settled as dead, without text where that was scrubbed. `attempts`: how often it was enqueued."""

    seq: int
    iteration: int
    reason: str
    attempts: int
    item: Item


def dead_of(engine: sa.Engine, run_id: str, *, limit: int | None = None) -> Iterator[DeadItem]:
    """The dead items of a run in item order, streamed."""
    statement = sa.text(
        """
        SELECT v.seq, v.iteration, v.reason, v.attempt, i.item_id, i.question, i.response, i.truth, i.source,
               i.category, i.subcategory
        FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id AND v.outcome = 'dead' ORDER BY v.seq, v.iteration LIMIT :limit
        """
    )
    with engine.connect() as connection:
        disable_nested_loops(connection)
        streamed = connection.execution_options(yield_per=_FETCH)
        for row in streamed.execute(statement, {"run_id": run_id, "limit": limit}):
            yield DeadItem(row.seq, row.iteration, row.reason, row.attempt, item_of(row))
