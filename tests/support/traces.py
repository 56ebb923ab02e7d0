"""What an OTLP/HTTP receiver got: spans, and the tree they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.receiver import Receiver


@dataclass(frozen=True)
class Seen:
    """One span; `of` are its process's attributes."""

    of: dict[str, object]
    span: Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def service(self) -> object:
        return self.of["service.name"]

    @property
    def about(self) -> dict[str, object]:
        return _plain(self.span.attributes)

    @property
    def failed(self) -> bool:
        return self.span.status.code == Status.STATUS_CODE_ERROR


def spans_in(receiver: Receiver) -> list[Seen]:
    """All spans that have arrived, each decoded as the protocol has it."""
    found = []
    for request in list(receiver.received):
        assert request.path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            of = _plain(group.resource.attributes)
            found += [Seen(of, span) for scope in group.scope_spans for span in scope.spans]
    return found


def tree(spans: Sequence[Seen]) -> str:
    """One trace as indented lines, in order of start, each with when it began, how long it took and its attributes."""
    known = {seen.span.span_id for seen in spans}
    in_order = sorted(spans, key=lambda seen: seen.span.start_time_unix_nano)
    begun = in_order[0].span.start_time_unix_nano

    def lines(parent: bytes | None, depth: int) -> list[str]:
        found = []
        for seen in in_order:
            under = seen.span.parent_span_id if seen.span.parent_span_id in known else None
            if under == parent:
                found += [_line(seen, depth, begun), *lines(seen.span.span_id, depth + 1)]
        return found

    return "\n".join(lines(None, 0))


def _line(seen: Seen, depth: int, begun: int) -> str:
    start_ms = (seen.span.start_time_unix_nano - begun) / 1e6
    took_ms = (seen.span.end_time_unix_nano - seen.span.start_time_unix_nano) / 1e6
    about = " ".join(f"{name.removeprefix('libra.')}={value}" for name, value in seen.about.items())
    return f"{'  ' * depth + seen.name:<24} {seen.service:<16} +{start_ms:6.1f} ms {took_ms:7.1f} ms  {about}"


def _plain(attributes: Sequence[KeyValue]) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in attributes}
