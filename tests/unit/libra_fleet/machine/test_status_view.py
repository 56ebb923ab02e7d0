"""The troubles that `libra fleet status` names, and that its view fits a terminal of 80 columns."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from libra_fleet.machine.view import status_facts, status_view, troubles
from schemas.fleet import Announcement, FleetSnapshot, OpenRun, Queue
from schemas.messages import Lane

READY = Announcement(
    id="gpu-host-1234-0",
    kind="worker",
    guard="libra-tiny",
    state="ready",
    device="0",
    over_s=60.0,
    busy_share=0.99,
    items_per_s=1234.5,
    tokens_per_s=410_000.0,
    padding_share=0.031,
    budget_tokens=131_072,
)
COLLECTOR = Announcement(id="collector-1", kind="collector", state="ready")
DEEP = Queue(guard="libra-tiny", lane=Lane.BULK, waiting=256, held=4, oldest_s=41.0)
RUN = OpenRun(
    id="r1",
    name="jade-medium",
    guard="libra-tiny",
    lane=Lane.BULK,
    state="sealed",
    accepted=5_720,
    settled=1_000,
    pending=4_720,
    dead=0,
    expected=5_720,
)


def fleet(*announced: Announcement, **changes: Any) -> FleetSnapshot:
    return FleetSnapshot(**{"queues": (DEEP,), "announced": announced or (READY, COLLECTOR), "runs": (RUN,), **changes})


def worker(**changes: Any) -> Announcement:
    return READY.model_copy(update=changes)


def test_a_busy_fleet_has_nothing_wrong() -> None:
    assert troubles(fleet()) == []


def test_chunks_that_no_worker_serves_are_named_with_what_would_help() -> None:
    (trouble,) = troubles(fleet(COLLECTOR))

    assert trouble == (
        "256 chunks wait on guard.libra-tiny.bulk and no worker serves libra-tiny: "
        "libra fleet worker --guard libra-tiny"
    )


def test_a_worker_that_still_loads_is_named_as_the_reason() -> None:
    (trouble,) = troubles(fleet(worker(state="loading"), COLLECTOR))

    assert trouble.endswith("every worker of libra-tiny is loading")


def test_work_without_a_collector_is_wrong() -> None:
    assert troubles(fleet(READY)) == ["runs are open and no collector runs: libra fleet collector"]
    assert "7 judged chunks" in troubles(fleet(READY, verdicts_waiting=7))[0]
    assert troubles(FleetSnapshot()) == []


def test_a_device_that_idles_while_chunks_wait_is_named_once_it_was_seen_long_enough() -> None:
    lazy = worker(busy_share=0.2)

    assert "busy 20%" in troubles(fleet(lazy, COLLECTOR))[0]
    assert troubles(fleet(worker(busy_share=0.2, over_s=5.0), COLLECTOR)) == []
    assert troubles(fleet(lazy, COLLECTOR, queues=())) == []


def test_messages_in_the_dead_letter_queue_are_wrong() -> None:
    assert troubles(fleet(dead_letters=1))[0].startswith("1 message is in the dead-letter queue")
    assert troubles(fleet(verdicts_kept=2))[0].startswith("2 judged chunks could not be settled")


def test_the_facts_of_a_worker_that_has_just_started_say_what_is_not_known_yet() -> None:
    young = Announcement(id="w", kind="worker", guard="fake", state="loading")

    (facts,) = status_facts(fleet(young, COLLECTOR))["workers"]
    assert facts == {
        "id": "w",
        "guard": "fake",
        "state": "loading",
        "device": "?",
        "over_s": 0.0,
        "busy_share": None,
        "items_per_s": None,
        "tokens_per_s": None,
        "padding_share": None,
        "budget_tokens": None,
    }


def test_the_view_fits_eighty_columns_whatever_the_names() -> None:
    long = worker(id="x" * 60, guard="a-guard-with-a-long-name", state="draining")
    wide = fleet(
        *(READY, long, COLLECTOR),
        queues=(DEEP, DEEP.model_copy(update={"guard": "g" * 50, "waiting": 1_000_000, "oldest_s": 1e6})),
        runs=(RUN, RUN.model_copy(update={"name": "n" * 70, "settled": 123_456_789, "pending": 1, "expected": None})),
    )
    text = StringIO()
    Console(file=text, width=80).print(status_view(wide))

    lines = text.getvalue().splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 80
    for fact in ("99%", "1,234", "131k", "410k", "17%", "41.0 s", "12 d"):
        assert fact in text.getvalue()
