"""Aliyun's TextModerationPlus (Green 2022-03-02): a form in, a risk level with labels out.

Errors are HTTP errors with Aliyun's codes, which its SDK raises. Labels and levels: cloud_labels.py.
"""

from __future__ import annotations

import uuid
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from producer.gateway.connectors.adapter import Caller, Decided, Text, WireModel, decide, judge
from producer.gateway.connectors.cloud_labels import ALIYUN, ALIYUN_RISK_LEVEL, ALIYUN_TOLERATED
from producer.gateway.problems import BadFieldError, ProblemError
from schemas.items import Dialogue, Kind, Label
from schemas.policy import Action

ACTION: Final = "TextModerationPlus"
_KIND_OF_SERVICE: Final = {"llm_query_moderation": Kind.PROMPT, "llm_response_moderation": Kind.RESPONSE}
"""Services that say whose the text is. Others (comment_detection, chat_detection, …) do not."""
_CODES: Final = {
    "unauthorized": (404, "InvalidAccessKeyId.NotFound"),
    "bad-signature": (400, "SignatureDoesNotMatch"),
    "expired-signature": (400, "InvalidTimeStamp.Expired"),
    "unknown-action": (404, "InvalidAction.NotFound"),
    "forbidden": (403, "Forbidden.RAM"),
    "invalid-field": (400, "InvalidParameter"),
    "kind-not-judged": (400, "InvalidParameter"),
    "rate-limited": (429, "Throttling.User"),
    "share-used": (429, "Throttling.User"),
    "queue-full": (429, "Throttling"),
    "too-large": (413, "InvalidParameter"),
}
"""Kind of our problem → HTTP status and Aliyun's code; others by their status."""


class _ServiceParameters(WireModel):
    content: str
    dataId: str | None = None  # noqa: N815 - Aliyun's name
    sessionId: str | None = None  # noqa: N815


async def answer(caller: Caller, request: Request) -> Response:
    """Judge the text of a signed request."""
    form = parse_qs((await request.body()).decode(errors="replace"), keep_blank_values=True)
    given = {**{name: [value] for name, value in request.query_params.items()}, **form}
    service = given.get("Service", [""])[0]
    try:
        asked = _ServiceParameters.model_validate_json(given.get("ServiceParameters", [""])[0])
    except ValidationError:
        raise BadFieldError("ServiceParameters", "a JSON object with a text `content` is expected") from None
    kind = _KIND_OF_SERVICE.get(service, Kind.TEXT)
    dialogue = (
        Dialogue(question=asked.content, kind=kind) if kind is Kind.PROMPT else Dialogue("", asked.content, (), kind)
    )
    judged = await judge(
        caller,
        [Text("content", dialogue)],
        surface=service or "aliyun",
        metadata={"data_id": asked.dataId, "session_id": asked.sessionId},
    )
    (decided,) = await decide(caller, judged)
    data = {**_result(decided), **({"DataId": asked.dataId} if asked.dataId else {})}
    return JSONResponse({"Code": 200, "Message": "OK", "RequestId": _request_id(), "Data": data})


def _result(decided: Decided) -> dict[str, Any]:
    verdict, action = decided.judged.verdict, decided.action
    level = ALIYUN_RISK_LEVEL[action]
    if action is Action.PASS and verdict.label is Label.SAFE:
        return {"RiskLevel": level, "Result": [{"Label": ALIYUN.safe, "Description": "未检测出风险"}]}
    if action is Action.PASS:
        level = ALIYUN_TOLERATED
    # A text that was not judged has the highest confidence: programs that compare it must not let it pass.
    confidence = round(100 * verdict.p_unsafe, 2) if verdict.p_unsafe is not None else 100.0
    labels = ALIYUN.of(verdict.categories) if decided.judged.was_judged else ["libra_not_judged"]
    rows = [{"Label": label, "Confidence": confidence, "Description": decided.why} for label in labels]
    return {"RiskLevel": level, "Result": rows}


def error(problem: ProblemError) -> Response:
    """A problem as Aliyun's error."""
    other = (problem.status, "ServiceUnavailable" if problem.status == 503 else "InternalError")
    status, code = _CODES.get(problem.kind, other)
    body = {"Code": code, "Message": problem.detail, "RequestId": _request_id()}
    return JSONResponse(body, status, problem.headers)


def _request_id() -> str:
    return str(uuid.uuid4()).upper()
