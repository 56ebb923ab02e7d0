"""Tencent's TextModeration (TMS 2020-12-29): JSON with a text in base64 in, a suggestion with labels out.

Errors come with status 200, as Tencent's do, and its SDK raises them. Labels and suggestions: cloud_labels.py.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from producer.gateway.connectors.adapter import Caller, Decided, Text, WireModel, decide, judge, parsed
from producer.gateway.connectors.cloud_labels import TENCENT, TENCENT_SUGGESTION
from producer.gateway.problems import BadFieldError, ProblemError
from schemas.items import Dialogue, Label
from schemas.policy import Action

ACTION: Final = "TextModeration"
_CODES: Final = {
    "unauthorized": "AuthFailure.SecretIdNotFound",
    "bad-signature": "AuthFailure.SignatureFailure",
    "expired-signature": "AuthFailure.SignatureExpire",
    "unknown-action": "InvalidAction",
    "forbidden": "AuthFailure.UnauthorizedOperation",
    "invalid-field": "InvalidParameter",
    "invalid-json": "InvalidParameter",
    "kind-not-judged": "InvalidParameter",
    "too-large": "InvalidParameterValue.ErrTextContentLen",
    "rate-limited": "RequestLimitExceeded",
    "share-used": "RequestLimitExceeded",
    "queue-full": "RequestLimitExceeded",
    "not-judged-in-time": "InternalError.ErrTextTimeOut",
}
"""Kind of our problem → Tencent's code; others are InternalError."""


class _User(WireModel):
    UserId: str | None = None


class TextModerationRequest(WireModel):
    """Tencent's request. `BizType` names the platform's own strategy there; here it is the surface of a policy."""

    Content: str
    BizType: str | None = None
    DataId: str | None = None
    SessionId: str | None = None
    User: _User | None = None

    def text(self) -> str:
        """The text itself, or 422."""
        try:
            return base64.b64decode(self.Content, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise BadFieldError("Content", "UTF-8 text in base64 is expected") from None


async def answer(caller: Caller, request: Request) -> Response:
    """Judge the text of a signed request."""
    asked = await parsed(request, TextModerationRequest)
    judged = await judge(
        caller,
        [Text("Content", Dialogue(response=asked.text()))],
        surface=asked.BizType or "tencent",
        metadata={
            "data_id": asked.DataId,
            "session_id": asked.SessionId,
            "user_id": asked.User.UserId if asked.User else None,
        },
    )
    (decided,) = await decide(caller, judged)
    named = {"BizType": asked.BizType or "", "DataId": asked.DataId or ""}
    return _response({**_result(decided), **named, "Extra": decided.judged.ref.name})


def _result(decided: Decided) -> dict[str, Any]:
    verdict, action = decided.judged.verdict, decided.action
    # `Score` is P(unsafe) in percent. A text that was not judged has the highest, as programs compare it.
    score = round(100 * verdict.p_unsafe) if verdict.p_unsafe is not None else 100 * (verdict.label is not Label.SAFE)
    harmless = action is Action.PASS and verdict.label is Label.SAFE
    labels = [TENCENT.safe] if harmless else TENCENT.of(verdict.categories)
    suggestion = TENCENT_SUGGESTION[action]
    row = {"Suggestion": suggestion, "Score": score, "Keywords": [], "SubLabel": ""}
    details = [] if harmless else [{**row, "Label": label, "LibName": decided.why} for label in labels]
    return {**row, "Label": labels[0], "DetailResults": details}


def error(problem: ProblemError) -> Response:
    """A problem as Tencent's error."""
    return _response({"Error": {"Code": _CODES.get(problem.kind, "InternalError"), "Message": problem.detail}})


def _response(content: dict[str, Any]) -> Response:
    return JSONResponse({"Response": {**content, "RequestId": str(uuid.uuid4())}})
