"""Dify's API-based moderation extension: asked before an app reads a user's input, and while it writes its output.

Dify lets an output pass whose moderation fails, so here everything but a pass is flagged, and so is whatever this
gateway could not have judged; only a wrong key is an HTTP error. An output comes again and again as it grows, and is
judged as a whole each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
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
from producer.gateway.problems import ProblemError
from producer.gateway.state import Here
from schemas.items import Dialogue, Kind
from schemas.policy import Action

_PRESET: Final = "内容未通过审核。 This content was not let through."
_FILE: Final = "transfer_method"
"""A field that Dify's descriptions of files have, and nothing else in its inputs."""


class _Params(WireModel):
    app_id: str = ""
    inputs: JsonValue = None
    query: str | None = None
    text: str | None = None


class ExtensionRequest(WireModel):
    """Dify's request: which point asks, and its parameters."""

    point: Literal["ping", "app.moderation.input", "app.moderation.output"]
    params: _Params = _Params()

    def judged_texts(self) -> Iterator[Text]:
        """Each text that says something: the query and the inputs' values, or the output as far as it has come."""
        params = self.params
        if self.point == "app.moderation.output":
            if params.text and params.text.strip():
                yield Text("params.text", Dialogue(response=params.text, kind=Kind.RESPONSE))
            return
        for place, text in _leaves({"query": params.query, "inputs": params.inputs}, "params"):
            yield Text(place, Dialogue(question=text, kind=Kind.PROMPT))


def _leaves(value: object, place: str) -> Iterator[tuple[str, str]]:
    """The texts in a JSON value, each with its place.

    Raises:
        ProblemError: 422; there is a file, which no guard here judges.
    """
    if isinstance(value, str) and value.strip():
        yield place, value
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from _leaves(one, f"{place}.{at}")
    elif isinstance(value, dict):
        if _FILE in value:
            raise ProblemError(422, "not-judged", f"{place} is a file, which no guard here judges", field=place)
        for name, one in value.items():
            yield from _leaves(one, f"{place}.{name}")


def _answer(request: Request, *, flagged: bool, why: str) -> Response:
    """Dify demands an action in every answer; `preset_response` is what its user reads instead of the text."""
    preset = (request.query_params.get("preset_response") or _PRESET) if flagged else ""
    answer = {"flagged": flagged, "action": "direct_output", "preset_response": preset}
    return JSONResponse({**answer, "libra": {"why": why}})


def _in_shape(problem: ProblemError, request: Request) -> Response:
    """What was not judged is flagged, for whatever reason; of a wrong key Dify shows the first hundred characters."""
    if is_about_the_key(problem):
        return JSONResponse({"message": problem.detail}, problem.status, problem.headers)
    return _answer(request, flagged=True, why=f"not judged: {problem.detail}")


router = APIRouter(tags=["connectors"], route_class=speaking(_in_shape), include_in_schema=False)


@router.post("/connect/dify")
async def moderate(request: Request, gateway: Here, guard: Annotated[str | None, Query()] = None) -> Response:
    """Pong, or whether the input or the output is flagged.

    The endpoint's address may have `?guard=NAME` and `?preset_response=WORDS`.
    """
    caller = await caller_with(request, gateway, key_in_headers(request), how="Authorization: Bearer lk_…")
    asked = await parsed(request, ExtensionRequest)
    if asked.point == "ping":
        return JSONResponse({"result": "pong"})
    texts = list(asked.judged_texts())
    if not texts:
        return _answer(request, flagged=False, why="no text")
    metadata = {"app_id": asked.params.app_id}
    surface = asked.point.replace("app.moderation", "dify")
    judged = await judge(caller, texts, surface=surface, guard=guard, metadata=metadata)
    worst = strictest(await decide(caller, judged))
    return _answer(request, flagged=worst.action is not Action.PASS, why=worst.why)
