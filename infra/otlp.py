"""Spans by OpenTelemetry's SDK, sent by OTLP over HTTP. Imported by `infra.tracing` alone, where traces are on.

Sending never disturbs work: a thread does it from a bounded queue, what does not fit or does not arrive is dropped
with a line in the log, and a process that ends waits for a few seconds at most.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_QUEUE_SPANS: Final = 2048
_SEND_SPANS: Final = 1024
_SEND_EVERY_S: Final = 1.0
_SEND_TIMEOUT_S: Final = 2.0
"""With a full queue and a receiver that hangs a process ends three of these later, within its supervisor's patience."""
_NANO: Final = 1_000_000_000
_W3C: Final = TraceContextTextMapPropagator()

Attributes = Mapping[str, str | int | None]


class Tracer:
    """Makes and sends the spans of one process. Thread-safe; not the application's global tracer, if it has one."""

    def __init__(self, endpoint: str, service: str, *, guard: str | None = None, always: bool = False) -> None:
        """Start sending. How much is sampled the SDK's own variables say (OTEL_TRACES_SAMPLER), unless `always`."""
        of_process = {"service.namespace": "libra", "service.name": service, **_ours({"guard": guard})}
        self._provider = TracerProvider(
            resource=Resource.create(of_process),
            sampler=ALWAYS_ON if always else None,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_TIMEOUT_S),
                max_queue_size=_QUEUE_SPANS,
                max_export_batch_size=_SEND_SPANS,
                schedule_delay_millis=_SEND_EVERY_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("libra")
        atexit.register(self.close)

    def close(self) -> None:
        """Send what waits; spans made later are dropped."""
        atexit.unregister(self.close)
        self._provider.shutdown()

    @contextmanager
    def span(self, name: str, attributes: Attributes, links: list[Link] | None = None) -> Iterator[None]:
        """See `infra.tracing.span`."""
        with self._tracer.start_as_current_span(
            name,
            attributes=_ours(attributes),
            links=links,
            record_exception=False,  # its message may hold anything
            set_status_on_exception=False,
        ) as current:
            try:
                yield
            except BaseException as error:
                current.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def annotate(self, attributes: Attributes) -> None:
        """See `infra.tracing.annotate`."""
        trace.get_current_span().set_attributes(_ours(attributes))

    @contextmanager
    def batch(self, name: str, asked_by: Iterable[str | None], attributes: Attributes) -> Iterator[None]:
        """See `infra.tracing.batch`."""
        asking = [trace.get_current_span(_context_of(traceparent)).get_span_context() for traceparent in asked_by]
        links = [Link(asker) for asker in asking if asker.trace_flags.sampled]
        if not links:
            yield
            return
        with self.span(name, attributes, links):
            yield

    def record(self, name: str, start_s: float, end_s: float, attributes: Attributes) -> None:
        """See `infra.tracing.record`."""
        passed = self._tracer.start_span(name, start_time=int(start_s * _NANO), attributes=_ours(attributes))
        passed.end(int(end_s * _NANO))

    @contextmanager
    def following(self, traceparent: str | None) -> Iterator[None]:
        """See `infra.tracing.following`."""
        token = context.attach(_context_of(traceparent))
        try:
            yield
        finally:
            context.detach(token)

    def traceparent(self) -> str | None:
        """See `infra.tracing.traceparent`."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent")

    def ids(self) -> dict[str, str]:
        """The current span's ids as a log has them; none outside a span."""
        current = trace.get_current_span().get_span_context()
        if not current.is_valid:
            return {}
        return {"trace_id": trace.format_trace_id(current.trace_id), "span_id": trace.format_span_id(current.span_id)}


def _ours(attributes: Attributes) -> dict[str, str | int]:
    return {f"libra.{name}": value for name, value in attributes.items() if value is not None}


def _context_of(traceparent: str | None) -> Context:
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())
