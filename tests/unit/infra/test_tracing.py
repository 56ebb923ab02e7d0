"""Traces: nothing at all where they are off; where they are on, what is sent and that sending disturbs nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import otlp
from infra.otlp import Tracer
from tests.support.receiver import Receiver
from tests.support.traces import spans_in

ROOT = Path(__file__).parents[3]
SECRET = "绝不能送出去的用户原文"
NOBODY = "http://127.0.0.1:9"
UNSAMPLED = f"00-{'1' * 32}-{'2' * 16}-00"

OFF = """
import json, sys
sys.modules["opentelemetry"] = None  # whoever imports it fails; redis-py, which looks for it by itself, can do without
from infra import tracing
from infra.broker.queues import Publisher
from infra.errors import UsageError
from infra.log import configure_logging, get_logger
import producer.intake.live, producer.intake.submit, worker.consumer.app, worker.collector.process, worker.device.server
import worker.device.client

class Queues:
    def push(self, queue, message):
        sent.append(json.loads(message)["headers"].get("traceparent"))

sent = []
configure_logging("info", "json")
tracing.start(None, "test")
with tracing.following("00-" + "1" * 32 + "-" + "2" * 16 + "-01"), tracing.span("a", items=1):
    tracing.record("b", start_s=1, end_s=2)
    with tracing.batch("c", [None]):
        get_logger("test").info("within")
    Publisher(Queues()).finalize("run")
    asked = tracing.traceparent()  # the device's client puts this into each request
imported = [name for name, module in sys.modules.items() if module and name.startswith("opentelemetry")]
try:
    tracing.start("http://127.0.0.1:9", "test")
except UsageError as error:
    refused = str(error)
print(json.dumps({"imported": imported, "headers": sent, "asked": asked, "refused": refused}))
"""


@pytest.mark.slow
def test_without_an_endpoint_nothing_is_imported_and_nothing_travels_and_with_one_the_extra_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", OFF], cwd=ROOT, capture_output=True, text=True, check=True)

    told = json.loads(done.stdout)
    assert "pip install 'libra-fleet[otel]'" in told.pop("refused")
    assert told == {"imported": [], "headers": [None], "asked": None}
    assert "trace_id" not in done.stderr


ON = """
import sys
from infra import tracing
from infra.log import configure_logging, get_logger
configure_logging("info", "json")
tracing.start(sys.argv[1], "test")
with tracing.span("a"):
    print(tracing.traceparent())
    get_logger("test").info("within")
get_logger("test").info("outside")
"""


def test_log_lines_within_a_span_carry_its_ids_and_the_span_is_sent_when_the_process_ends(receiver: Receiver) -> None:
    words = [sys.executable, "-c", ON, f"http://127.0.0.1:{receiver.port}/"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)

    within, outside = map(json.loads, done.stderr.splitlines())
    assert done.stdout.startswith(f"00-{within['trace_id']}-{within['span_id']}-")
    assert "trace_id" not in outside
    assert [seen.span.span_id.hex() for seen in spans_in(receiver)] == [within["span_id"]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver().running() as started:
        yield started


def tracer_to(receiver: Receiver, *, always: bool = False) -> Tracer:
    return Tracer(f"http://127.0.0.1:{receiver.port}", "test", guard="fake", always=always)


def test_of_an_error_only_its_type_is_sent(receiver: Receiver) -> None:
    tracer = tracer_to(receiver)
    with pytest.raises(ValueError, match=SECRET), tracer.span("a", {}):
        raise ValueError(SECRET)
    tracer.close()

    (seen,) = spans_in(receiver)
    assert seen.failed
    assert seen.span.status.message == "ValueError"
    assert all(SECRET.encode() not in request.body for request in receiver.received)


def test_a_span_carries_on_the_senders_trace_and_nonsense_begins_another(receiver: Receiver) -> None:
    tracer = tracer_to(receiver)
    with tracer.span("sender", {}):
        sent = tracer.traceparent()
    with tracer.following(sent), tracer.span("taker", {}):
        ids = tracer.ids()
    with tracer.following("nonsense"), tracer.span("alone", {}):
        pass
    assert tracer.traceparent() is None
    assert tracer.ids() == {}
    tracer.close()

    spans = {seen.name: seen.span for seen in spans_in(receiver)}
    assert spans["taker"].parent_span_id == spans["sender"].span_id
    assert ids == {"trace_id": spans["taker"].trace_id.hex(), "span_id": spans["taker"].span_id.hex()}
    assert spans["alone"].trace_id != spans["sender"].trace_id
    assert not spans["alone"].parent_span_id


def test_a_batch_is_linked_to_the_sampled_that_asked_and_is_silent_where_none_is(receiver: Receiver) -> None:
    tracer = tracer_to(receiver, always=True)
    with tracer.span("asker", {}):
        asker = tracer.traceparent()
    with tracer.batch("linked", [None, UNSAMPLED, asker], {"rows": 3}):
        pass
    with tracer.batch("silent", [None, UNSAMPLED], {}):
        pass
    tracer.close()

    spans = {seen.name: seen for seen in spans_in(receiver)}
    assert spans.keys() == {"asker", "linked"}
    assert [link.span_id for link in spans["linked"].span.links] == [spans["asker"].span.span_id]
    assert spans["linked"].about == {"libra.rows": 3}
    assert spans["linked"].of["libra.guard"] == "fake"


def test_a_receiver_that_is_away_disturbs_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "_SEND_TIMEOUT_S", 0.1)
    tracer = Tracer(NOBODY, "test")
    for number in range(3000):  # more than the queue holds
        with tracer.span("a", {"items": number}):
            pass
    tracer.close()
    with tracer.span("late", {}):
        pass

    assert "Failed to export" in caplog.text
