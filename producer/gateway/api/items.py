"""`/v1/items` and `/v1/verdicts`: submit now, read verdicts later, any number of times. `/v1/runs/{id}`: a run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from infra.ledger import feed
from infra.ledger.feed import SubmittedItem
from infra.ledger.runs import RunStatus, find_run, stored_report
from producer.gateway.api.requests import (
    IdempotencyHeader,
    Prefer,
    accept,
    accept_and_wait,
    guard_of,
    item_batch_of,
    may_answer_later,
    once_of,
    wait_s_of,
)
from producer.gateway.problems import BadFieldError, NoSuchThingError
from producer.gateway.state import Here, Reader, Submitter
from producer.intake.verdict_waiter import ItemRef
from schemas.http import MOST_ITEMS, ApiRequest, DecisionView, ItemRequest, ItemView, RunView, VerdictView
from schemas.items import submitted_name
from schemas.runs import RUN_ID, RunReport
from schemas.verdicts import Outcome

_LARGEST_CURSOR_DIGITS: Final = 18
_ITEM_NAME: Final = re.compile(rf"item_({RUN_ID})_([0-9]{{1,18}})")

router = APIRouter(prefix="/v1", tags=["items"])
runs = APIRouter(prefix="/v1", tags=["runs"])


class ItemsRequest(ApiRequest):
    """Items to judge. `guard` judges them all; none means the default guard."""

    items: Annotated[list[ItemRequest], Field(min_length=1, max_length=MOST_ITEMS)]
    guard: str | None = None


@router.post("/items", status_code=202, response_model=None, responses={200: {"description": "All of them judged"}})
async def submit_items(
    *,
    asked: ItemsRequest,
    principal: Submitter,
    request: Request,
    gateway: Here,
    prefer: Prefer = None,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Accept items, each of which will end in a verdict; with `Prefer: wait=…`, wait for the verdicts."""
    guard = guard_of(asked.guard, gateway, field="guard")
    item_batch = item_batch_of(asked.items, guard, principal, gateway)
    once = once_of(idempotency_key, principal, "items", await request.body())
    answer = {"object": "list", "guard": guard.name}
    if not may_answer_later(prefer):
        refs = (await accept(gateway, item_batch, once)).refs
        named = [{"id": ref.name, "custom_id": one.custom_id} for ref, one in zip(refs, asked.items, strict=True)]
        return JSONResponse({**answer, "data": named}, 202)
    refs, verdicts = await accept_and_wait(gateway, item_batch, once, wait_s=wait_s_of(prefer, gateway))
    seqs = [ref.seq for ref in refs]
    found = await gateway.ask(feed.submitted_items, refs[0].run_id, seqs)
    return JSONResponse({**answer, "data": [item_view(found[seq]) for seq in seqs]}, 202 if verdicts is None else 200)


@router.get("/items/{name}")
async def get_item(name: str, principal: Reader, gateway: Here) -> dict[str, Any]:
    """An item, with its verdict once it has one."""
    ref = ref_of(name)
    item = (await gateway.ask(feed.submitted_items, ref.run_id, [ref.seq])).get(ref.seq)
    if item is None or not principal.sees(item.tenant):
        raise NoSuchThingError("item", name)
    return item_view(item)


@router.get("/verdicts")
async def list_verdicts(
    *,
    principal: Reader,
    gateway: Here,
    cursor: Annotated[str, Query(max_length=40, description="`next_cursor` of the page before; none: the start")] = "0",
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> dict[str, Any]:
    """The tenant's settled items, in the order of settling. Any cursor may be asked for again."""
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= _LARGEST_CURSOR_DIGITS):
        raise BadFieldError("cursor", "not a next_cursor of this feed")
    page = await gateway.ask(feed.feed_page, principal.tenant, after=int(cursor), limit=limit)
    return {
        "object": "list",
        "data": [{**item_view(item), "cursor": str(n)} for n, item in page],
        "next_cursor": str(page[-1][0]) if page else cursor,
        "has_more": len(page) == limit,
    }


@runs.get("/runs/{run_id}")
async def get_run(
    run_id: Annotated[str, Path(pattern=rf"^{RUN_ID}$")],
    principal: Reader,
    gateway: Here,
) -> dict[str, Any]:
    """A run of the tenant's own (an admin: any), with the benchmark's metrics once it has ended."""
    status = await gateway.ask(find_run, run_id)
    if status is None or not principal.sees(status.spec.tenant or ""):
        raise NoSuchThingError("run", run_id)
    return run_view(status, await gateway.ask(stored_report, run_id))


def ref_of(name: str) -> ItemRef:
    """The place of the item with this name (the inverse of `ItemRef.name`), or 404."""
    match = _ITEM_NAME.fullmatch(name)
    if match is None:
        raise NoSuchThingError("item", name[:80])
    return ItemRef(match[1], int(match[2]))


def item_view(item: SubmittedItem) -> dict[str, Any]:
    """An item with its verdict and decision, if it has them."""
    verdict, decided = item.verdict, item.decided
    view = ItemView(
        id=submitted_name(item.run_id, item.seq),
        status="settled" if verdict else "pending",
        custom_id=item.custom_id,
        policy=item.policy,
        metadata=item.metadata,
        run_id=item.run_id,
        guard=item.guard,
        created_at=item.created_at,
        settled_at=item.settled_at,
        verdict=VerdictView(
            outcome=verdict.outcome,
            label=verdict.label,
            p_unsafe=verdict.p_unsafe,
            label_mass=verdict.label_mass,
            categories=verdict.categories,
            categories_by=verdict.categories_by,
            reason=verdict.reason if verdict.outcome is not Outcome.SCORED else None,
            fingerprint=item.fingerprint,
        )
        if verdict
        else None,
        decision=DecisionView(
            action=decided.action,
            by="human" if decided.by_human else "policy",
            policy=decided.policy,
            policy_version=decided.policy_version,
            reason=decided.reason,
        )
        if decided
        else None,
    )
    return view.model_dump(mode="json")


def run_view(status: RunStatus, report: RunReport | None) -> dict[str, Any]:
    """A run's progress, with its report once it has ended."""
    view = RunView(
        run=status.id,
        name=status.name,
        state=status.state.value,
        guard=status.spec.guard,
        mode=status.spec.mode.value,
        source=status.spec.source,
        parent=status.spec.parent,
        expected=status.expected,
        **status.counts.model_dump(),
        seconds=round(status.seconds, 3),
        created_at=status.created_at,
        report=report.model_dump(mode="json") if report else None,
    )
    return view.model_dump(mode="json")
