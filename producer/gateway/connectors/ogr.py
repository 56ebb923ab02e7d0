"""OpenGuardrails' runtime API, version 1.0: one event in, one verdict out, with the paths that could not be judged.

Its enforcement points let a step pass by default where no verdict comes. So everything that a text can bring about is a
verdict here: `block`, with the paths under `unjudged`. Only a wrong key and a malformed event are errors.
Source: github.com/openguardrails/openguardrails, schema/runtime-api.openapi.yaml and specification/guard-event.md.
"""

from __future__ import annotations

import json
import time
import uuid
from importlib.metadata import version
from typing import Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue

from producer.gateway.api.ops import readyz
from producer.gateway.connectors.adapter import (
    Decided,
    WireModel,
    caller_with,
    decide,
    is_about_the_key,
    judge,
    key_in_headers,
    parsed,
    speaking,
)
from producer.gateway.connectors.chat_bodies import in_request, in_response
from producer.gateway.problems import ProblemError
from producer.gateway.state import Here
from schemas.policy import Action
from schemas.taxonomy import SCENARIOS, SUBCATEGORIES

_PROVIDER: Final = "libra-fleet"
_OUR_CODES: Final = {scenario.code for scenario in SCENARIOS} | {sub.code for sub in SUBCATEGORIES}
_UNNAMED: Final = "x.libra.unsafe"
_SEVERITY: Final = {
    Action.REVIEW: "medium",  # a human should look
    Action.BLOCK: "high",  # the policy is sure; a guard has no word for what is critical
}


class GuardEvent(WireModel):
    """One half of a model call. The identity may be empty, and must be there, as the specification has it."""

    kind: Literal["step/request", "step/response"]
    step_id: str
    agent_id: str
    agent_type: str
    agent_workspace: str
    agent_owner: str
    agent_user: str
    llm_protocol: Literal["openai.chat", "openai.responses", "anthropic.messages", "canonical"]
    payload: dict[str, JsonValue]


def _category(codes: tuple[str, ...]) -> str:
    """The first of our categories in OGR's namespace for extensions: its own taxonomy is another one than ours."""
    ours = (code.rpartition(":")[2] for code in codes)
    return next((f"x.libra.{code}" for code in ours if code in _OUR_CODES), _UNNAMED)


def _verdict(started: float, *, block: bool, findings: list[dict[str, Any]], unjudged: list[str]) -> Response:
    return JSONResponse(
        {
            "event_id": f"evt_{time.time_ns():x}{uuid.uuid4().hex[:8]}",  # unique, and in the order of time
            "provider": _PROVIDER,
            "decision": "block" if block or unjudged else "allow",
            "latency_ms": round(1_000 * (time.monotonic() - started), 1),
            "findings": findings,
            "unjudged": unjudged,
        }
    )


def _in_shape(problem: ProblemError, request: Request) -> Response:
    """OGR's error for a wrong key or a malformed event; whatever else, a block that says what was not judged."""
    if is_about_the_key(problem):
        return JSONResponse({"error": "unauthorized", "detail": problem.detail}, problem.status, problem.headers)
    if request.url.path.endswith("/health"):
        return JSONResponse({"status": "error", "detail": problem.detail}, 503)
    if problem.kind in {"invalid-json", "invalid-event"}:
        details = problem.more.get("errors") or [{"field": "body", "detail": problem.detail}]
        return JSONResponse({"error": "invalid_event", "details": details}, 400)
    return _verdict(time.monotonic(), block=True, findings=[], unjudged=["payload"])


router = APIRouter(prefix="/v1", tags=["connectors"], route_class=speaking(_in_shape), include_in_schema=False)


@router.post("/evaluate")
async def evaluate(request: Request, gateway: Here) -> Response:
    """Judge what was said in a request or in an answer."""
    started = time.monotonic()
    caller = await caller_with(request, gateway, key_in_headers(request), how="Authorization: Bearer lk_…")
    event = await _event(request)
    found = in_request(event.payload) if event.kind == "step/request" else in_response(event.payload)
    if not found.texts:
        return _verdict(started, block=False, findings=[], unjudged=found.unjudged)
    named = ("step_id", "agent_id", "agent_type", "agent_workspace", "agent_owner", "agent_user")
    judged = await judge(
        caller,
        found.texts,
        surface=event.kind.replace("step/", "ogr."),
        metadata={name: getattr(event, name) for name in named},
    )
    pairs = list(zip(found.texts, await decide(caller, judged), strict=True))
    findings = [
        _finding(text.place, one) for text, one in pairs if one.judged.was_judged and one.action is not Action.PASS
    ]
    unjudged = [text.place for text, one in pairs if not one.judged.was_judged]
    return _verdict(started, block=bool(findings), findings=findings, unjudged=[*found.unjudged, *unjudged])


@router.post("/heartbeat")
async def heartbeat(request: Request, gateway: Here) -> Response:
    """Acknowledge an integration's sign of life; nothing of it is kept."""
    await caller_with(request, gateway, key_in_headers(request), how="Authorization: Bearer lk_…")
    return JSONResponse({"ok": True})


@router.get("/health")
async def health(gateway: Here) -> Response:
    """Whether texts can be judged: the servers answer, and a worker serves the default guard."""
    ready = await readyz(gateway)
    if not ready["guard_served"]:
        raise ProblemError(503, "guard-not-served", f"no worker serves {gateway.default_guard} now")
    return JSONResponse({"status": "ok", "version": version("libra-fleet")})


async def _event(request: Request) -> GuardEvent:
    try:
        return await parsed(request, GuardEvent)
    except ProblemError as problem:
        if problem.kind == "invalid-field":
            problem.kind = "invalid-event"
        elif problem.kind == "invalid-json" and _is_json(await request.body()):
            problem.kind = "not-judged"
        raise


def _is_json(body: bytes) -> bool:
    """Whether others read as JSON what our parser refuses: half a character in a text, arguments that are too deep."""
    try:
        json.loads(body)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _finding(path: str, decided: Decided) -> dict[str, Any]:
    verdict = decided.judged.verdict
    score = {} if verdict.p_unsafe is None else {"score": verdict.p_unsafe}
    category = _category(verdict.categories)
    return {"category": category, "severity": _SEVERITY[decided.action], "path": path, "detector": _PROVIDER, **score}
