"""Perspective's `comments:analyze` over this fleet: Google's API ends on 2026-12-31, its clients need not.

Shapes are those of the discovery document commentanalyzer v1alpha1. Scores: perspective_attributes.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from producer.gateway.connectors.adapter import Text, WireModel, caller_with, judge, key_in_headers, parsed, speaking
from producer.gateway.connectors.perspective_attributes import ATTRIBUTES, mapped, scores
from producer.gateway.problems import BadFieldError, ProblemError
from producer.gateway.state import Here
from schemas.items import Dialogue

_UNKNOWN_LANGUAGE: Final = "und"
_CANONICAL_CODES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
"""HTTP status → google.rpc.Code, as Google's APIs pair them; others are INTERNAL."""


class _GoogleModel(WireModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class _TextEntry(_GoogleModel):
    text: str = ""
    type: Literal["TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT", "HTML"] = "PLAIN_TEXT"


class _AttributeParameters(_GoogleModel):
    score_type: Literal["SCORE_TYPE_UNSPECIFIED", "PROBABILITY"] = "PROBABILITY"
    score_threshold: float | None = None


class AnalyzeCommentRequest(_GoogleModel):
    """Google's request. What it holds besides has no effect here: context, doNotStore, spanAnnotations."""

    comment: _TextEntry
    requested_attributes: Annotated[dict[str, _AttributeParameters], Field(min_length=1, max_length=100)]
    languages: Annotated[tuple[str, ...], Field(max_length=20)] = ()
    client_token: str | None = None
    session_id: str | None = None
    community_id: str | None = None

    def refuse_unknown(self) -> None:
        """422 on the first attribute that no guard here judges."""
        for name in self.requested_attributes:
            if mapped(name) is None:
                known = ", ".join(ATTRIBUTES)
                raise BadFieldError("requestedAttributes", f"{name[:60]!r} is not judged here; these are: {known}")


def _google_error(problem: ProblemError, _: Request) -> Response:
    """Google's error object (google.rpc.Status in JSON). A field that is wrong is 400 there."""
    status = 400 if problem.status in {413, 422} else problem.status
    error = {"code": status, "message": problem.detail, "status": _CANONICAL_CODES.get(problem.status, "INTERNAL")}
    return JSONResponse({"error": error}, status, problem.headers)


def _discovery(root_url: str) -> dict[str, Any]:
    """The part of Google's discovery document that its clients build `comments().analyze` from."""
    shapes = ("AnalyzeCommentRequest", "AnalyzeCommentResponse")
    analyze = {
        "id": "commentanalyzer.comments.analyze",
        "path": "v1alpha1/comments:analyze",
        "flatPath": "v1alpha1/comments:analyze",
        "httpMethod": "POST",
        "parameters": {},
        "parameterOrder": [],
        "request": {"$ref": shapes[0]},
        "response": {"$ref": shapes[1]},
    }
    return {
        "kind": "discovery#restDescription",
        "discoveryVersion": "v1",
        "protocol": "rest",
        "id": "commentanalyzer:v1alpha1",
        "name": "commentanalyzer",
        "version": "v1alpha1",
        "title": "Perspective's comments:analyze, by Libra Fleet",
        "rootUrl": root_url,
        "servicePath": "",
        "batchPath": "batch",
        "parameters": {"key": {"type": "string", "location": "query", "description": "an API key of this gateway"}},
        "schemas": {name: {"id": name, "type": "object", "properties": {}} for name in shapes},
        "resources": {"comments": {"methods": {"analyze": analyze}}},
    }


router = APIRouter(tags=["connectors"], route_class=speaking(_google_error), include_in_schema=False)


@router.get("/$discovery/rest")
async def discovery(request: Request) -> Response:
    """What Google's clients load before they ask; it sends them on to the address that it was loaded from."""
    return JSONResponse(_discovery(str(request.base_url)))


@router.post("/v1alpha1/comments:analyze")
async def analyze_comment(request: Request, gateway: Here) -> Response:
    """Judge a comment and answer with a score for each attribute that was asked for."""
    secret = request.query_params.get("key") or request.headers.get("x-goog-api-key") or key_in_headers(request)
    caller = await caller_with(request, gateway, secret, how="?key=lk_…")
    asked = await parsed(request, AnalyzeCommentRequest)
    asked.refuse_unknown()
    text = asked.comment.text
    (judged,) = await judge(
        caller,
        [Text("comment.text", Dialogue(response=text))],
        surface="perspective",
        metadata={"session_id": asked.session_id, "community_id": asked.community_id},
    )
    whole = {"begin": 0, "end": len(text.encode("utf-16-le")) // 2}  # counted in UTF-16, as Google's spans are
    answers: dict[str, Any] = {}
    for name, value in scores(judged.verdict, asked.requested_attributes).items():
        threshold = asked.requested_attributes[name].score_threshold
        if threshold is None or value >= threshold:
            score = {"value": value, "type": "PROBABILITY"}
            answers[name] = {"spanScores": [{**whole, "score": score}], "summaryScore": score}
    languages = asked.languages or (_UNKNOWN_LANGUAGE,)
    token = {"clientToken": asked.client_token} if asked.client_token is not None else {}
    return JSONResponse({"attributeScores": answers, "languages": languages, **token, "libra": judged.view})
