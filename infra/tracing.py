"""Traces: what a chunk met on its way, as OpenTelemetry spans, where an OTLP endpoint is configured.

Without one nothing of OpenTelemetry is imported and everything here returns at once. Knows nothing of Celery or of
the device socket: the sender of something puts `traceparent()` with it, the receiver passes that to `following`.
Attributes are ids of ours and numbers: never a text, never an id that a user gave an item.

`opentelemetry-api` is such a no-op as well, but costs 88 ms of CPU to import in every process (`libra --help` included)
and 12 µs a span where this costs 1.3 µs (measured with 1.45 on the 2-core machine of docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from structlog.typing import EventDict

from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.otlp import Tracer

_tracer: Tracer | None = None


def start(endpoint: str | None, service: str, *, guard: str | None = None, always: bool = False) -> None:
    """Send this process's spans to an OTLP/HTTP endpoint (its base URL) from now on; None: make no spans.

    `guard` is written on every span of the process. `always`: a span is made whether or not its trace is sampled, by a
    process that asks this of its links (`batch`).

    Raises:
        UsageError: the extra that does it is not installed.
    """
    global _tracer  # noqa: PLW0603 - one per process, as with the log
    if endpoint is None or _tracer is not None:
        return
    try:
        from infra.otlp import Tracer  # noqa: PLC0415 - not installed or not wanted by most
    except ImportError as error:
        raise UsageError(f"LIBRA_OTLP_ENDPOINT needs: pip install 'libra-fleet[otel]' ({error})") from error
    _tracer = Tracer(endpoint, service, guard=guard, always=always)


def span(name: str, **attributes: str | int | None) -> AbstractContextManager[None]:
    """A span around what runs in the context, below the current one; of an error only the type is kept."""
    return nullcontext() if _tracer is None else _tracer.span(name, attributes)


def annotate(**attributes: str | int) -> None:
    """Add attributes to the current span, known only after it began."""
    if _tracer is not None:
        _tracer.annotate(attributes)


def batch(name: str, asked_by: Iterable[str | None], **attributes: str | int) -> AbstractContextManager[None]:
    """A span for work done at once for many traces: linked to all of them that are sampled, none if none is."""
    return nullcontext() if _tracer is None else _tracer.batch(name, asked_by, attributes)


def record(name: str, *, start_s: float, end_s: float, **attributes: str | int) -> None:
    """A span of something that has passed, in epoch seconds; of no length if the two clocks disagree."""
    if _tracer is not None:
        _tracer.record(name, min(start_s, end_s), end_s, attributes)


def following(traceparent: str | None) -> AbstractContextManager[None]:
    """Spans in the context belong to the sender's trace; without one (or with nonsense) they begin their own."""
    return nullcontext() if _tracer is None else _tracer.following(traceparent)


def traceparent() -> str | None:
    """The current span in W3C Trace Context's form, for the next process; None: there is none."""
    return None if _tracer is None else _tracer.traceparent()


def add_ids(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: `trace_id` and `span_id` on lines that are written within a span."""
    if _tracer is not None:
        event.update(_tracer.ids())
    return event
