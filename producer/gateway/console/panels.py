"""The contents of the console's panels: the review queue with an item in front, and a text that a person tries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger import reviews
from infra.ledger.intake import Submission
from infra.ledger.reviews import Review, ReviewItem
from infra.ledger.stats import item_timings
from producer.gateway.access import Principal
from producer.gateway.api.requests import ItemBatch, guard_of, item_of
from producer.gateway.api.submitting import accept_and_wait
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway
from producer.intake.verdict_waiter import ItemRef
from schemas.verdicts import Timings, Verdict

SHOWN: Final = 50
SURFACE: Final = "console"
"""Tells such items from a platform's own, in policies and in the feed of verdicts."""


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
        """True if more wait than are shown."""
        return len(self.entries) == SHOWN


def queue_page(engine: sa.Engine, tenant: str | None, wanted: ItemRef | None = None) -> QueuePage:
    """The queue of a tenant, or of all (None), with the wanted item in front, or else the first."""
    now = datetime.now(UTC)
    # Moderators of one day share a sample: what one decided is not asked of the next.
    queue = reviews.review_queue(engine, tenant, SHOWN, seed=now.toordinal())
    page = QueuePage(now, [Entry(ItemRef(item.run_id, item.seq).name, item) for item in queue])
    names = [entry.name for entry in page.entries]
    name = wanted.name if wanted else None
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
    return Entry(wanted.name, item)


class Tried(NamedTuple):
    """The outcome of a tried text. No verdict: it did not come in time, or (`problem`) the text was not let in."""

    guard: str
    verdict: Verdict | None = None
    name: str | None = None
    total_s: float | None = None
    timings: Timings | None = None
    decided: ReviewItem | None = None
    problem: str | None = None
    status: int = 200


async def try_text(gateway: Gateway, principal: Principal, text: str, question: str) -> Tried:
    """Have a text judged by the default guard."""
    guard = guard_of(None, gateway, field="guard")
    started = time.monotonic()
    try:
        item = item_of(text, question, fields={"response": "text"})
        submission = Submission(principal.tenant, metadata={"surface": SURFACE})
        refs, verdicts = await accept_and_wait(
            gateway,
            principal,
            guard,
            ItemBatch([item], {item.id: submission}),
            None,
            wait_s=gateway.settings.gateway_wait_s,
        )
    except ProblemError as error:
        return Tried(guard.name, problem=error.detail, status=error.status)
    total_s = time.monotonic() - started
    (ref,) = refs
    if verdicts is None:
        return Tried(guard.name, name=ref.name, total_s=total_s)
    engine = gateway.services.engine
    timings = await asyncio.to_thread(item_timings, engine, ref.run_id, ref.seq)
    decided = await asyncio.to_thread(reviews.review_item, engine, ref.run_id, ref.seq)
    return Tried(guard.name, verdicts[0], ref.name, total_s, timings, decided)
