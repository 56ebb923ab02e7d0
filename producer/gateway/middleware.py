"""Around every request: an id, a limit on its body, a line in the process's own metrics. Knows no route."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import nullcontext
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import tracing
from infra.coordination import counters as telemetry
from infra.coordination.counters import Metric

REQUEST_ID: Final = b"x-request-id"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_GIVEN_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_UNKNOWN_ROUTE: Final = "none"
"""Label of requests that match no route: callers choose paths, and must not choose labels."""


class GatewayMetrics:
    """One gateway process's own metrics, on a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(metric: Metric) -> Counter:
            return Counter(metric.name, metric.help, metric.labels, registry=registry)

        def histogram(metric: Metric) -> Histogram:
            return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)

        self.requests = counter(telemetry.GATEWAY_REQUESTS)
        self.request_s = histogram(telemetry.GATEWAY_REQUEST)
        self.accepted = counter(telemetry.GATEWAY_ACCEPTED)
        self.refused = counter(telemetry.GATEWAY_REFUSED)
        self.commit_items = histogram(telemetry.GATEWAY_COMMIT)
        self.verdict_wait_s = histogram(telemetry.GATEWAY_VERDICT_WAIT)
        waiting = telemetry.GATEWAY_WAITING
        self.waiting = Gauge(waiting.name, waiting.help, waiting.labels, registry=registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


class RequestFrame:
    """Gives a request an id (the caller's own where it is short and plain), goes on with its trace, and counts it."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(REQUEST_ID, b"")
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
            with (
                structlog.contextvars.bound_contextvars(request=request_id.decode()),
                tracing.following(headers.get(b"traceparent", b"").decode("latin-1") or None),
                # What polls this process, probes and scrapes, makes no traces.
                tracing.span("libra.request") if scope["method"] == "POST" else nullcontext(),
            ):
                await self._app(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
            self._metrics.requests.labels(route, scope["method"], str(status)).inc()
            self._metrics.request_s.labels(route).observe(time.monotonic() - started)


class BodyLimit:
    """Refuses a body above a route's limit with 413, when the route reads it: as soon as it is announced or has come.

    The route itself meets the error, so that it is answered in the route's own shape.
    """

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
        announced = dict(scope["headers"]).get(b"content-length", b"")
        too_long = announced.isdigit() and int(announced) > limit
        received = 0

        async def counted() -> Message:
            nonlocal received
            message: Message = {} if too_long else await receive()
            received += len(message.get("body", b""))
            if too_long or received > limit:
                raise HTTPException(413, f"the body is longer than {limit:,} bytes")
            return message

        await self._app(scope, counted, send)
