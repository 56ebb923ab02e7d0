"""`POST /v1/moderations`: OpenAI's endpoint over this fleet. Its official clients work against it unchanged.

Shapes are those of OpenAI's API reference (moderations/create). Our own fields stand under "libra" in each result.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field, WithJsonSchema

from infra.ledger.intake import Submission
from producer.gateway.api.openai_categories import CATEGORIES, openai_categories
from producer.gateway.api.requests import (
    IdempotencyHeader,
    ItemBatch,
    Prefer,
    accept_and_wait,
    guard_of,
    item_of,
    once_of,
    wait_s_of,
)
from producer.gateway.state import Here, Submitter
from schemas.http import MOST_ITEMS, ApiRequest
from schemas.items import Label
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


@router.post("/moderations", response_model=None, responses={202: {"description": "Accepted, not judged in time"}})
async def create_moderation(
    *,
    asked: ModerationRequest,
    principal: Submitter,
    request: Request,
    gateway: Here,
    prefer: Prefer = None,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Judge texts and answer with OpenAI's categories; 202 with ids where the verdicts do not come in time."""
    guard = guard_of(asked.model, gateway, field="model")
    names = ["input"] if len(asked.input) == 1 else [f"input.{at}" for at in range(len(asked.input))]
    items = [item_of(text, fields={"response": name}) for text, name in zip(asked.input, names, strict=True)]
    item_batch = ItemBatch(principal.tenant, guard, items, {item.id: Submission(principal.tenant) for item in items})
    once = once_of(idempotency_key, principal, "moderations", await request.body())
    refs, verdicts = await accept_and_wait(gateway, item_batch, once, wait_s=wait_s_of(prefer, gateway))
    answer = {"id": f"modr-{refs[0].run_id}-{refs[0].seq}", "model": guard.name}
    if verdicts is None:
        # An empty list, which OpenAI's clients can read: there are no results yet.
        pending = {**answer, "results": [], "status": "pending", "items": [ref.name for ref in refs]}
        return JSONResponse(pending, 202, headers={"Location": f"/v1/items/{refs[0].name}"})
    results = [result_of(verdict, ref.name) for ref, verdict in zip(refs, verdicts, strict=True)]
    return JSONResponse({**answer, "results": results})


def result_of(verdict: Verdict, ours: str) -> dict[str, Any]:
    """One of OpenAI's results. A category's score is p_unsafe where the guard named the category, else null.

    Null, not 0, because the guard said nothing of it (docs/decisions/0011); likewise a category of an unsafe
    item where the guard named none. Nothing is claimed of an item that could not be judged.
    """
    named = openai_categories(verdict.categories)
    says_which = verdict.label is Label.SAFE or bool(verdict.categories)
    return {
        "flagged": verdict.label is Label.UNSAFE,
        "categories": {name: name in named if says_which else None for name in CATEGORIES},
        "category_scores": {name: verdict.p_unsafe if name in named else None for name in CATEGORIES},
        "category_applied_input_types": {name: ["text"] if name in named else [] for name in CATEGORIES},
        "libra": {
            "item": ours,
            "outcome": verdict.outcome.value,
            "label": verdict.label.value if verdict.label else None,
            "p_unsafe": verdict.p_unsafe,
            "categories": list(verdict.categories),
            "reason": verdict.reason if verdict.outcome is not Outcome.SCORED else None,
        },
    }
