"""What `libra status` calls wrong, and that it fits a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from infra.fleet_status import FleetStatus, OpenRun, Queue, Worker, troubles
from libra_fleet.cli.status_view import status_view
from schemas.messages import Lane

READY = Worker("gpu-host-1234-0", "libra-tiny", "ready", "0", 60.0, 0.99, 1234.5, 410_000.0, 0.031, 131_072)
DEEP = Queue("libra-tiny", Lane.BULK, waiting=256, held=4, oldest_s=41.0)
RUN = OpenRun("r1", "jade-medium", "libra-tiny", Lane.BULK, "sealed", 5_720, 1_000, 4_720, 0, 5_720)
HEALTHY = FleetStatus(queues=(DEEP,), workers=(READY,), collectors=("collector-1",), runs=(RUN,))


def test_a_busy_fleet_has_nothing_wrong() -> None:
    assert troubles(HEALTHY) == []


def test_chunks_that_no_worker_serves_are_named_with_what_would_help() -> None:
    (trouble,) = troubles(replace(HEALTHY, workers=()))

    assert trouble == (
        "256 chunks wait on guard.libra-tiny.bulk and no worker serves libra-tiny: libra worker --guard libra-tiny"
    )


def test_a_worker_that_still_loads_is_named_as_the_reason() -> None:
    (trouble,) = troubles(replace(HEALTHY, workers=(replace(READY, state="loading"),)))

    assert trouble.endswith("every worker of libra-tiny is loading")


def test_work_without_a_collector_is_wrong() -> None:
    assert troubles(replace(HEALTHY, collectors=())) == ["runs are open and no collector runs: libra collector"]
    assert "7 judged chunks" in troubles(replace(HEALTHY, collectors=(), verdicts_waiting=7))[0]
    assert troubles(FleetStatus()) == []


def test_a_device_that_idles_while_chunks_wait_is_named_once_it_was_seen_long_enough() -> None:
    lazy = replace(READY, busy_share=0.2)

    assert "busy 20%" in troubles(replace(HEALTHY, workers=(lazy,)))[0]
    assert troubles(replace(HEALTHY, workers=(replace(lazy, over_s=5.0),))) == []
    assert troubles(replace(HEALTHY, queues=(), workers=(lazy,))) == []


def test_parked_messages_are_wrong() -> None:
    assert troubles(replace(HEALTHY, parked=1))[0].startswith("1 message is parked")


def test_the_view_fits_eighty_columns_whatever_the_names() -> None:
    long = replace(READY, id="x" * 60, guard="a-guard-with-a-long-name", state="draining")
    fleet = replace(
        HEALTHY,
        queues=(DEEP, replace(DEEP, guard="g" * 50, waiting=1_000_000, oldest_s=1e6)),
        workers=(READY, long),
        runs=(RUN, replace(RUN, name="n" * 70, settled=123_456_789, pending=1, expected=None)),
    )
    text = StringIO()
    Console(file=text, width=80).print(status_view(fleet))

    lines = text.getvalue().splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 80
    for fact in ("99%", "1,234", "131k", "410k", "17%", "41.0 s", "12 d", "nothing is wrong"):
        assert fact in text.getvalue()
