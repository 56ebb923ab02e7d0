"""The review queue as a page shows it: what waits, which item is in front, what comes before and after it. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger import reviews
from infra.ledger.reviews import Review, ReviewItem
from producer.gateway.api.views import item_id
from producer.gateway.verdicts_awaited import ItemRef

SHOWN: Final = 50


class Entry(NamedTuple):
    """An item with its name over HTTP."""

    name: str
    item: ReviewItem


class QueuePage(NamedTuple):
    """`current` is the item in front; `waits` says whether it waits or was decided (`history`, the newest first)."""

    now: datetime
    entries: Sequence[Entry]
    current: Entry | None = None
    waits: bool = True
    previous: str | None = None
    following: str | None = None
    history: Sequence[Review] = ()

    @property
    def full(self) -> bool:
        """Whether more wait than are shown."""
        return len(self.entries) == SHOWN


def queue_page(engine: sa.Engine, tenant: str | None, wanted: ItemRef | None = None) -> QueuePage:
    """The queue of a tenant, or of all (None), with the wanted item in front, or else the first."""
    now = datetime.now(UTC)
    # Moderators of one day share a sample: what one decided is not asked of the next.
    queue = reviews.review_queue(engine, tenant, SHOWN, seed=now.toordinal())
    page = QueuePage(now, [Entry(item_id(ItemRef(item.run_id, item.seq)), item) for item in queue])
    names = [entry.name for entry in page.entries]
    name = item_id(wanted) if wanted else None
    decided = _decided(engine, tenant, wanted) if wanted and name not in names else None
    if wanted and decided:
        history = reviews.review_history(engine, wanted.run_id, wanted.seq)
        return page._replace(current=decided, waits=False, history=history, following=names[0] if names else None)
    if not names:
        return page
    at = names.index(name) if name in names else 0
    following = names[at + 1] if at + 1 < len(names) else None
    return page._replace(current=page.entries[at], previous=names[at - 1] if at else None, following=following)


def _decided(engine: sa.Engine, tenant: str | None, wanted: ItemRef) -> Entry | None:
    item = reviews.review_item(engine, wanted.run_id, wanted.seq)
    if item is None or tenant not in (None, item.tenant):
        return None
    return Entry(item_id(wanted), item)
