"""LiteLLM's generic guardrail API: what its proxy asks before and after a model call.

Its answers have no third state, and its proxy may be told to let errors pass (`fail_on_error: false`). So here
everything but a pass is BLOCKED, and so is whatever this gateway could not have judged; only a wrong key is an HTTP
error. Contract: https://docs.litellm.ai/docs/adding_provider/generic_guardrail_api.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue

from producer.gateway.connectors.adapter import (
    Text,
    WireModel,
    caller_with,
    decide,
    is_about_the_key,
    judge,
    key_in_headers,
    parsed,
    speaking,
    strictest,
)
from producer.gateway.connectors.chat_bodies import Found, in_request, in_response, joined
from producer.gateway.problems import ProblemError
from producer.gateway.state import Here
from schemas.items import Dialogue, Kind
from schemas.policy import Action


class GuardrailRequest(WireModel):
    """LiteLLM's request. `texts` are all texts of the call, one after the other, whoever says them.

    `additional_provider_specific_params` is not read: LiteLLM merges what the end user sends into it.
    """

    input_type: Literal["request", "response"] = "request"
    texts: list[str | None] | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    structured_messages: JsonValue = None
    litellm_call_id: str | None = None
    model: str | None = None

    def judged_texts(self) -> Iterator[Text]:
        """Each text that says something, and the arguments of each call of a tool, which are the model's words, too."""
        for at, text in enumerate(self.texts or ()):
            if text and text.strip():
                yield Text(f"texts.{at}", self._spoken(text))
        for said in self._tool_calls.texts:
            yield Text(said.place.removeprefix("payload."), Dialogue(response=said.dialogue.response))

    def unjudged(self) -> list[str]:
        """The places of what is no text: LiteLLM names images, but audio and files stand in the messages alone."""
        images = ["images"] if self.images else []
        found = [self._tool_calls]
        if self.input_type == "request" and self.structured_messages is not None:
            found.append(in_request({"messages": self.structured_messages}))
        return [*images, *joined(found).unjudged]

    @property
    def _tool_calls(self) -> Found:
        return in_response({"tool_calls": self.tool_calls}) if self.tool_calls else Found([], [])

    def _spoken(self, text: str) -> Dialogue:
        if self.input_type == "request":
            return Dialogue(question=text, kind=Kind.PROMPT)
        return Dialogue(response=text, kind=Kind.RESPONSE)


def _blocked(reason: str) -> Response:
    return JSONResponse({"action": "BLOCKED", "blocked_reason": reason})


def _in_shape(problem: ProblemError, _: Request) -> Response:
    """What was not judged is blocked, for whatever reason."""
    if is_about_the_key(problem):
        return JSONResponse({"detail": problem.detail}, problem.status, problem.headers)
    return _blocked(f"not judged: {problem.detail}")


router = APIRouter(tags=["connectors"], route_class=speaking(_in_shape), include_in_schema=False)


@router.post("/beta/litellm_basic_guardrail_api")
async def apply_guardrail(request: Request, gateway: Here) -> Response:
    """NONE where every text passes, else BLOCKED with the reason of the strictest.

    Its configuration's `headers` may choose: x-libra-guard the guard, x-libra-surface the surface for policies.
    """
    caller = await caller_with(request, gateway, key_in_headers(request), how="x-api-key: lk_…")
    asked = await parsed(request, GuardrailRequest)
    if unjudged := asked.unjudged():
        return _blocked(f"not judged: {', '.join(unjudged)} is no text")
    texts = list(asked.judged_texts())
    if not texts:
        return JSONResponse({"action": "NONE"})
    judged = await judge(
        caller,
        texts,
        surface=request.headers.get("x-libra-surface") or f"litellm.{asked.input_type}",
        guard=request.headers.get("x-libra-guard"),
        metadata={"litellm_call_id": asked.litellm_call_id, "model": asked.model},
    )
    worst = strictest(await decide(caller, judged))
    if worst.action is Action.PASS:
        return JSONResponse({"action": "NONE"})
    return _blocked(worst.why)
