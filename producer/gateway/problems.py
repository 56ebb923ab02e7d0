"""Every error as a problem document (RFC 9457). Says which field is wrong, never what the user wrote in it.

On OpenAI's routes it also holds the `error` object that OpenAI's clients read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from infra.errors import LibraError, RunError, ServerError
from infra.log import get_logger

MEDIA_TYPE: Final = "application/problem+json"
IN_OPENAPI: Final[dict[str, Any]] = {
    "description": "A problem document (RFC 9457)",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string", "description": "a URN; its last part is stable"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "field": {"type": "string", "description": "the place that is wrong, such as items.0.text"},
                    "errors": {"type": "array", "items": {"type": "object"}},
                    "request_id": {"type": "string"},
                    "error": {"type": "object", "description": "OpenAI's error object, on OpenAI's routes"},
                },
            }
        }
    },
}
"""Every error, as the OpenAPI document describes it."""

_TYPE: Final = "urn:libra-fleet:problem:"
_OPENAI_ROUTES: Final = ("/v1/moderations", "/v1/files", "/v1/batches", "/v1/models")
_ERRORS_SHOWN: Final = 20
_SHOWN_CHARS: Final = 300
_RETRY: Final = {"Retry-After": "2"}

log = get_logger(__name__)


class ProblemError(LibraError):
    """An answer that is a problem document. `kind` is the stable end of its type, `field` the place that is wrong."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = {**({"field": field} if field else {}), **more}

    def response(self, request_id: str | None = None, *, path: str = "") -> Response:
        """The problem as a response to a request for a path."""
        content: dict[str, object] = {
            "type": _TYPE + self.kind,
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
            **({"request_id": request_id} if request_id else {}),
        }
        if path.startswith(_OPENAI_ROUTES):
            content["error"] = self._openai_error()
        return JSONResponse(content, self.status, self.headers, media_type=MEDIA_TYPE)

    def _openai_error(self) -> dict[str, object]:
        """OpenAI's error object: https://platform.openai.com/docs/guides/error-codes."""
        kinds = {429: "requests"} | dict.fromkeys(range(500, 600), "server_error")
        codes = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
        return {
            "message": self.detail,
            "type": kinds.get(self.status, "invalid_request_error"),
            "param": self.more.get("field"),
            "code": codes.get(self.status, self.kind),
        }


class BadFieldError(ProblemError):
    """422 on one field."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(422, "invalid-field", f"{field}: {detail}", field=field)


class NoSuchThingError(ProblemError):
    """404; a thing of another tenant is answered like one that never existed."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(404, "not-found", f"no {what} {name!r}")


def answer_errors(app: FastAPI) -> None:
    """Have the application answer every error with a problem document."""
    kinds = (ProblemError, RequestValidationError, HTTPException, RunError, ServerError, DBAPIError, redis.RedisError)
    for kind in (*kinds, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", None)
    problem = problem_of(error)
    if problem.kind == "internal" and request_id:
        problem.headers["X-Request-ID"] = request_id  # this answer is given outside RequestFrame
    return problem.response(request_id, path=request.url.path)


def problem_of(error: Exception) -> ProblemError:
    """The problem that an error is answered with. Neither it nor the log quotes the error where that is user text."""
    match error:
        case ProblemError():
            return error
        case RequestValidationError():
            return invalid(error.errors()[:_ERRORS_SHOWN])
        case HTTPException(status_code=status):
            kinds = {400: "invalid-json", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}
            field = "body" if status in {400, 413} else None
            kind = kinds.get(status, "http-error")
            return ProblemError(status, kind, error.detail, field=field, headers=error.headers)
        case RunError():  # an operator cancelled the tenant's run of the day, and at once the next; a third is opened
            log.warning("run_closed", error=str(error))
            return ProblemError(503, "run-closed", "today's run was ended by an operator", headers=_RETRY)
        case ServerError() | DBAPIError() | redis.RedisError():  # an SQL error quotes its parameters
            log.warning("server_away", error=type(error).__name__)
            detail = "a server behind the gateway is away; try again"
            return ProblemError(503, "unavailable", detail, headers=_RETRY)
    log.error("request_failed", error=type(error).__name__)
    return ProblemError(500, "internal", "an internal error; the log has its class, under this request's id")


def invalid(details: Sequence[Mapping[str, Any]]) -> ProblemError:
    """400 or 422 for a body that pydantic refuses, by its errors without their input."""
    if details[0]["type"] == "json_invalid":
        return ProblemError(400, "invalid-json", "the body is not valid JSON", field="body")
    errors = []
    for detail in details:
        field, message = field_name(detail["loc"]), str(detail["msg"]).removeprefix("Value error, ")[:_SHOWN_CHARS]
        if detail["type"] == "model_attributes_type" and tuple(detail["loc"]) == ("body",):
            field, message = "body", "not a JSON object sent with Content-Type: application/json"
        errors.append({"field": field, "detail": message})
    first = errors[0]
    said = f"{first['field']}: {first['detail']}"
    return ProblemError(422, "invalid-field", said, field=first["field"], errors=errors)


def field_name(location: Sequence[object]) -> str:
    """A place as its reader writes it: `items.0.response`, or `body` where the body as a whole is meant."""
    inner = location[1:] if location and location[0] in {"body", "query", "path", "header"} else location
    # An unknown field's name is the caller's own and may be anything.
    name = ".".join(str(part) for part in inner)[:_SHOWN_CHARS] or str(location[0] if location else "body")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
