"""`POST /v1/moderations`: OpenAI's endpoint over this fleet. Its official clients work against it unchanged.

Shapes are those of OpenAI's API reference (moderations/create). Our own fields stand under "libra" in each result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field, WithJsonSchema

from infra.ledger.intake import Submission
from producer.gateway.api.moderation_result import moderation_result
from producer.gateway.api.requests import (
    IdempotencyHeader,
    ItemBatch,
    Prefer,
    accept_and_wait,
    guard_of,
    item_of,
    may_answer_later,
    once_of,
    wait_s_of,
)
from producer.gateway.problems import ProblemError
from producer.gateway.state import Here, Submitter
from schemas.http import MOST_ITEMS, ApiRequest, Metadata, MetadataValue
from schemas.items import Dialogue
from schemas.verdicts import Outcome, Verdict

router = APIRouter(prefix="/v1", tags=["moderations"])

_INPUT_SCHEMA: Final[dict[str, Any]] = {
    "description": "A text, a list of texts (a result for each), or a list of text parts (one result for all)",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MOST_ITEMS},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}},
                "required": ["type", "text"],
            },
        },
    ],
}


def _texts(given: object) -> object:
    """The texts to judge one by one; an input in none of the three forms is returned as it is, to fail validation."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given and all(isinstance(part, dict) for part in given):
        for at, part in enumerate(given):
            if part.get("type") == "image_url":
                raise ValueError(f"part {at} is an image_url; no guard here judges images, only text")
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"part {at} is not of the form {{type: text, text: …}}; only text can be judged")
        return ["\n".join(part["text"] for part in given)]
    return given


class ModerationRequest(ApiRequest):
    """OpenAI's request. `model` is a guard's name; none, or one of OpenAI's own names, means the default guard."""

    input: Annotated[
        list[str],
        Field(min_length=1, max_length=MOST_ITEMS),
        BeforeValidator(_texts),
        WithJsonSchema(_INPUT_SCHEMA),
    ]
    model: str | None = None
    metadata: Metadata | None = None
    user: MetadataValue | None = None
    safety_identifier: MetadataValue | None = None

    def input_names(self) -> list[str]:
        """What an error calls each text."""
        return ["input"] if len(self.input) == 1 else [f"input.{at}" for at in range(len(self.input))]

    @property
    def context(self) -> Metadata | None:
        """The metadata of each item: the caller's own, with the end user's id under the name it was given."""
        users = {"user": self.user, "safety_identifier": self.safety_identifier}
        given = {name: value for name, value in users.items() if value is not None}
        return {**given, **(self.metadata or {})} or None


@router.post(
    "/moderations",
    response_model=None,
    responses={202: {"description": "Accepted, not judged in time; only where `Prefer` was sent"}},
)
async def create_moderation(
    *,
    asked: ModerationRequest,
    principal: Submitter,
    request: Request,
    gateway: Here,
    prefer: Prefer = None,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Judge texts and answer with OpenAI's categories.

    Where the verdicts do not come in time: 202 with ids if the request has `Prefer: wait=SECONDS` or `respond-async`,
    else 503 with Retry-After, because OpenAI's clients read 202 as "nothing flagged".
    """
    guard = guard_of(asked.model, gateway, field="model")
    names = asked.input_names()
    items = [
        item_of(Dialogue(response=text), fields={"response": name})
        for text, name in zip(asked.input, names, strict=True)
    ]
    submission = Submission(principal.tenant, metadata=asked.context)
    item_batch = ItemBatch(principal.tenant, guard, items, {item.id: submission for item in items})
    once = once_of(idempotency_key, principal, "moderations", await request.body())
    refs, verdicts = await accept_and_wait(gateway, item_batch, once, wait_s=wait_s_of(prefer, gateway))
    answer = {"id": f"modr-{refs[0].run_id}-{refs[0].seq}", "model": guard.name}
    if verdicts is None:
        where = {"Location": f"/v1/items/{refs[0].name}"}
        if not may_answer_later(prefer):
            raise not_in_time([ref.name for ref in refs], where)
        # An empty list, which OpenAI's clients can read: there are no results yet.
        pending = {**answer, "results": [], "status": "pending", "items": [ref.name for ref in refs]}
        return JSONResponse(pending, 202, headers=where)
    if gateway.settings.unjudged == "error":
        refuse_unjudged(verdicts, names)
    unnamed = gateway.settings.unnamed_category
    pairs = zip(refs, verdicts, strict=True)
    results = [moderation_result(verdict, ref.name, unnamed_category=unnamed) for ref, verdict in pairs]
    return JSONResponse({**answer, "results": results})


def not_in_time(item_names: Sequence[str], headers: Mapping[str, str] | None = None) -> ProblemError:
    """503: accepted, but nobody has judged in time."""
    detail = "accepted, but not judged in time; the items will settle, and can be read at /v1/items/ID"
    return ProblemError(
        503, "not-judged-in-time", detail, headers={"Retry-After": "2", **(headers or {})}, items=list(item_names)
    )


def refuse_unjudged(verdicts: Sequence[Verdict], names: Sequence[str]) -> None:
    """502 on the first input that could not be judged. OpenAI's clients do not retry it: it has settled."""
    for verdict, name in zip(verdicts, names, strict=True):
        if verdict.outcome is not Outcome.SCORED:
            detail = f"{name}: not judged ({verdict.outcome.value}: {verdict.reason or 'no reason given'})"
            raise ProblemError(502, "not-judged", detail, field=name, headers={"x-should-retry": "false"})
