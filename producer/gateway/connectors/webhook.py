"""A plain webhook for AI gateways: texts or a chat body in, a verdict out. Portkey's and Kong's, and agentgateway's.

Portkey lets a call pass where its webhook is late or fails, and others can be told to. So here everything but a pass is
`verdict: false` or a rejection, and so is whatever this gateway could not have judged; only a wrong key is an error.
Sources: Portkey's "bring your own guardrails"; agentgateway's guardrail webhook API (its fixed paths are /request and
/response); Kong's AI Custom Guardrail, which reads any field of any answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue

from producer.gateway.connectors.adapter import (
    Caller,
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
from producer.gateway.problems import BadFieldError, ProblemError
from producer.gateway.state import Here
from schemas.items import Dialogue
from schemas.policy import Action

_AFTER: Final = "afterRequestHook"
"""Portkey's word for a call that is about the model's answer."""
_HOW: Final = "Authorization: Bearer lk_…"


class WebhookRequest(WireModel):
    """One text, several, a chat body (a request or an answer, OpenAI's or Anthropic's), or Portkey's context."""

    text: JsonValue = None
    texts: list[str] | None = None
    messages: list[JsonValue] | None = None
    input: JsonValue = None
    prompt: JsonValue = None
    choices: list[JsonValue] | None = None
    output: JsonValue = None
    content: JsonValue = None
    eventType: str | None = None  # noqa: N815 - Portkey's name
    request: dict[str, JsonValue] | None = None
    response: dict[str, JsonValue] | None = None

    def found(self) -> Found:
        """What is to be judged; 422 where there is nothing in a form that is known here.

        Fields of several forms are all judged: a gateway that hands on its caller's body hands on what was added to it.
        """
        found: list[Found] = []
        if self.eventType is not None:
            is_answer = self.eventType == _AFTER
            found.append(_of_portkey((self.response if is_answer else self.request) or {}, is_answer=is_answer))
        # OpenAI's responses API calls the form of an answer `text`.
        plain = {"text": self.text if isinstance(self.text, str) else None, **_numbered("texts", self.texts)}
        if any(text is not None for text in plain.values()) or self.texts is not None:
            texts = [Text(place, Dialogue(response=text)) for place, text in plain.items() if text and text.strip()]
            found.append(Found(texts, []))
        asked = {"messages": self.messages, "input": self.input, "prompt": self.prompt}
        said = {"choices": self.choices, "output": self.output, "content": self.content}
        for side, look in ((asked, in_request), (said, in_response)):
            given = {name: value for name, value in side.items() if value is not None}
            if given:
                found.append(look(given))
        if not found:
            known = "text, texts, messages, input, prompt, choices, output, content or eventType is expected"
            raise BadFieldError("body", known)
        return joined(found)


def _numbered(name: str, texts: Sequence[str] | None) -> dict[str, str]:
    return {f"{name}.{at}": text for at, text in enumerate(texts or ())}


def _of_portkey(side: Mapping[str, JsonValue], *, is_answer: bool) -> Found:
    body, text = side.get("json"), side.get("text")
    if isinstance(body, dict) and body:
        return in_response(body) if is_answer else in_request(body)
    if isinstance(text, str):
        said = {"text": text} if is_answer else {"input": text}
        return in_response(said) if is_answer else in_request(said)
    raise BadFieldError(
        "response.json" if is_answer else "request.json", "a chat body, or a text beside it, is expected"
    )


class _Answer(NamedTuple):
    action: Action
    why: str
    items: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        return self.action is Action.PASS


async def _answer(caller: Caller, found: Found, surface: str) -> _Answer:
    """The strictest action over all that was found; a part that no guard here judges does not pass."""
    unjudged = tuple(found.unjudged)
    if unjudged:
        return _Answer(Action.BLOCK, f"not judged: {', '.join(unjudged)} is no text", (), unjudged)
    if not found.texts:
        return _Answer(Action.PASS, "no text")
    decisions = await decide(caller, await judge(caller, found.texts, surface=surface))
    pairs = zip(found.texts, decisions, strict=True)
    missing = tuple(text.place for text, one in pairs if not one.judged.was_judged)
    worst = strictest(decisions)
    return _Answer(worst.action, worst.why, tuple(one.judged.ref.name for one in decisions), missing)


def _plain(answer: _Answer) -> Response:
    content: dict[str, Any] = {
        "verdict": answer.passes,  # Portkey's field
        "flagged": not answer.passes,
        "action": answer.action.value,
        "reason": answer.why,
        "unjudged": list(answer.unjudged),
        "items": list(answer.items),
    }
    return JSONResponse(content)


def _agentgateways(answer: _Answer) -> Response:
    if answer.passes:
        return JSONResponse({"action": {"reason": answer.why}})
    rejected = {"body": "The content was not let through.", "status_code": 403, "reason": answer.why}
    return JSONResponse({"action": rejected})


def _in_shape(problem: ProblemError, request: Request) -> Response:
    """What was not judged does not pass, for whatever reason."""
    if is_about_the_key(problem):
        return JSONResponse({"error": problem.detail}, problem.status, problem.headers)
    answer = _Answer(Action.BLOCK, f"not judged: {problem.detail}")
    return _plain(answer) if request.url.path == "/connect/webhook" else _agentgateways(answer)


router = APIRouter(tags=["connectors"], route_class=speaking(_in_shape), include_in_schema=False)


@router.post("/connect/webhook")
async def plain(request: Request, gateway: Here) -> Response:
    """Whether texts, a chat request or a chat answer may pass."""
    caller = await caller_with(request, gateway, key_in_headers(request), how=_HOW)
    asked = await parsed(request, WebhookRequest)
    return _plain(await _answer(caller, asked.found(), request.query_params.get("surface") or "webhook"))


class _AgentgatewayRequest(WireModel):
    body: dict[str, JsonValue]


@router.post("/request")
async def agentgateway_request(request: Request, gateway: Here) -> Response:
    """Pass or reject a prompt, for agentgateway."""
    caller = await caller_with(request, gateway, key_in_headers(request), how=_HOW)
    asked = await parsed(request, _AgentgatewayRequest)
    return _agentgateways(await _answer(caller, in_request(asked.body), "agentgateway.request"))


@router.post("/response")
async def agentgateway_response(request: Request, gateway: Here) -> Response:
    """Pass or reject an answer, for agentgateway."""
    caller = await caller_with(request, gateway, key_in_headers(request), how=_HOW)
    asked = await parsed(request, _AgentgatewayRequest)
    return _agentgateways(await _answer(caller, in_response(asked.body), "agentgateway.response"))
