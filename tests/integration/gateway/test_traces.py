"""The trace of a gateway's caller goes on in the fleet."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from infra.servers.services import Services
from tests.support.fleet import Fleet
from tests.support.gateway import free_port, new_key, start_gateway
from tests.support.receiver import Receiver
from tests.support.traces import Seen, spans_in

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver().running() as running:
        yield running


def test_the_callers_traceparent_is_followed_and_nonsense_begins_a_trace(
    fleet: Fleet, services: Services, receiver: Receiver
) -> None:
    port = free_port()
    start_gateway(fleet, port, LIBRA_OTLP_ENDPOINT=f"http://127.0.0.1:{receiver.port}")
    headers = {"Authorization": f"Bearer {new_key(services)}", "Prefer": "respond-async"}

    def ask(traceparent: str) -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            answer = client.post(
                "/v1/moderations", json={"input": "a"}, headers={**headers, "traceparent": traceparent}
            )
        assert answer.status_code == 202

    def spans(name: str) -> list[Seen]:
        return [seen for seen in spans_in(receiver) if seen.name == name]

    ask(f"00-{CALLER}-{SPAN}-01")
    ask("nonsense")
    fleet.wait(lambda: len(spans("libra.request")) == len(spans("libra.submit")) == 2)

    by_trace = {seen.span.trace_id.hex(): seen.span for seen in spans("libra.request")}
    submitted = {seen.span.trace_id.hex(): seen.span for seen in spans("libra.submit")}
    assert by_trace[CALLER].parent_span_id.hex() == SPAN
    assert submitted[CALLER].parent_span_id == by_trace[CALLER].span_id
    (other,) = by_trace.keys() - {CALLER}
    assert by_trace[other].parent_span_id == b""
    assert submitted[other].parent_span_id == by_trace[other].span_id
