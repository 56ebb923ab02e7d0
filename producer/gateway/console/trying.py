"""The box to try a text: through the live lane, as any caller's would go, and what came of it."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from infra.ledger import reading, reviews
from infra.ledger.reviews import ReviewItem
from infra.ledger.submissions import Submission
from producer.gateway.access import Principal
from producer.gateway.api.requests import ItemBatch, guard_of, item_of
from producer.gateway.api.submitting import accept_and_wait
from producer.gateway.api.views import item_id
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway
from schemas.verdicts import Timings, Verdict

SURFACE: Final = "console"
"""Tells such items from a platform's own, in policies and in the feed of verdicts."""


class Tried(NamedTuple):
    """What came of a text. No verdict: it did not come in time, or (`problem`) the text was not let in."""

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
        places, verdicts = await accept_and_wait(
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
    (place,) = places
    if verdicts is None:
        return Tried(guard.name, name=item_id(place), total_s=total_s)
    engine = gateway.services.engine
    timings = await gateway.pool.run(reading.item_timings, engine, place.run_id, place.seq)
    decided = await gateway.pool.run(reviews.review_item, engine, place.run_id, place.seq)
    return Tried(guard.name, verdicts[0], item_id(place), total_s, timings, decided)
