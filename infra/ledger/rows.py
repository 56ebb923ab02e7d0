"""What a row of the ledger says, as the objects that everyone speaks of. Knows no statement."""

from __future__ import annotations

import sqlalchemy as sa

from infra.metrics import Judged
from schemas.items import Item, Label
from schemas.verdicts import Outcome

Row = sa.Row[tuple[object, ...]]


def item_of(row: Row) -> Item:
    """A row of `items`. It was valid when it was accepted; a scrubbed one has no text, which no new item may lack."""
    return Item.model_construct(
        id=row.item_id,
        question=row.question,
        response=row.response,
        truth=Label(row.truth) if row.truth else None,
        source=row.source,
        category=row.category,
        subcategory=row.subcategory,
    )


def judged_of(row: Row) -> Judged:
    """An item's place and truth beside its verdict, as metrics take it; `controversial` is a column of its own."""
    return Judged(
        source=row.source,
        category=row.category,
        subcategory=row.subcategory,
        truth=Label(row.truth) if row.truth else None,
        outcome=Outcome(row.outcome),
        label=Label(row.label) if row.label else None,
        p_unsafe=row.p_unsafe,
        controversial=row.controversial,
    )
