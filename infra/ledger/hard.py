"""A run's items with what makes them hard: the verdict, what humans said, whether a child run disagrees. Read only."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from schemas.items import Label

_FETCH: Final = 2_000


class Judged(NamedTuple):
    """An item with its guard's verdict. `human` is the newest review; `disputed`: a child run gave another label."""

    item_id: str
    seq: int
    question: str
    response: str
    source: str
    category: str
    subcategory: str
    truth: Label | None
    label: Label | None
    p_unsafe: float | None
    human: Label | None
    disputed: bool


def judged_items(engine: sa.Engine, run_id: str, since: datetime | None = None) -> Iterator[Judged]:
    """The settled items of a run whose texts are still there, in their order, streamed."""
    statement = sa.text(
        """
        SELECT i.item_id, i.seq, i.question, i.response, i.source, i.category, i.subcategory, i.truth,
               v.label, v.p_unsafe, h.label AS human,
               EXISTS (SELECT 1 FROM disagreements g WHERE g.run_id = i.run_id AND g.seq = i.seq) AS disputed
        FROM items i JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq AND v.iteration = 0
        LEFT JOIN LATERAL (
            SELECT r.label FROM reviews r WHERE r.run_id = i.run_id AND r.seq = i.seq ORDER BY r.id DESC LIMIT 1
        ) h ON true
        WHERE i.run_id = :run_id AND i.response <> ''
          AND (CAST(:since AS timestamptz) IS NULL OR v.settled_at >= :since)
        ORDER BY i.seq
        """
    )
    with engine.connect() as connection:
        streamed = connection.execution_options(yield_per=_FETCH)
        for row in streamed.execute(statement, {"run_id": run_id, "since": since}):
            yield Judged(
                item_id=row.item_id,
                seq=row.seq,
                question=row.question,
                response=row.response,
                source=row.source,
                category=row.category,
                subcategory=row.subcategory,
                truth=_label(row.truth),
                label=_label(row.label),
                p_unsafe=row.p_unsafe,
                human=_label(row.human),
                disputed=row.disputed,
            )


def _label(value: str | None) -> Label | None:
    return Label(value) if value else None
