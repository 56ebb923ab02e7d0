"""What surrounds every request: an id, a limit on its body, a line in the metrics. Knows nothing of any route."""

from __future__ import annotations

import re
import time
import uuid
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer.gateway.metrics import GatewayMetrics
from producer.gateway.problems import ProblemError

REQUEST_ID: Final = b"x-request-id"
_GIVEN_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_UNKNOWN_ROUTE: Final = "none"
"""Label of whatever matches no route: paths are the caller's to choose, and a label must not be."""


class Frame:
    """Gives a request an id (the caller's own where it is a sober one), and counts it."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(REQUEST_ID, b"")
        request_id = given if _GIVEN_ID.fullmatch(given) else b"req_" + uuid.uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        started, status = time.monotonic(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, request_id)]
            await send(message)

        try:
            with structlog.contextvars.bound_contextvars(request=request_id.decode()):
                await self._app(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
            self._metrics.requests.labels(route, scope["method"], str(status)).inc()
            self._metrics.request_s.labels(route).observe(time.monotonic() - started)


class BodyLimit:
    """Refuses a body above a route's limit with 413, as soon as it is announced or has come."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int, larger: dict[str, int]) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._larger.get(scope["path"], self._limit_bytes)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            request_id = scope.get("state", {}).get("request_id")
            problem = ProblemError(413, "too-large", _why(limit), field="body")
            await problem.response(request_id)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, _why(limit))
            return message

        await self._app(scope, counted, send)


def _why(limit: int) -> str:
    return f"the body is longer than {limit:,} bytes"
