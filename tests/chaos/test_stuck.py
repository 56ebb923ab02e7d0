"""Processes that are stopped and items that are poison, on a real fleet: nothing healthy dies, nothing waits for long.

A chunk may be lost only once here, so that one false loss shows as a dead item.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.ledger import intake
from infra.ledger.items import dead_of
from infra.ledger.runs import run_status
from infra.servers.services import Services
from producer.intake.submit import seal, submit
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec
from tests.support.fleet import Fleet, consumer_of, device_of, fleet_on

ITEMS = 640
SILENCE_S = 3
SPEC = RunSpec(guard="fake", source="chaos")


@pytest.fixture
def fleet(services: Services, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(services, tmp_path, LIBRA_MAX_ATTEMPTS="2", LIBRA_SILENCE_S=str(SILENCE_S)) as started:
        yield started


def submitted(services: Services, poison: dict[int, str]) -> str:
    run_id = intake.create_run(services.engine, SPEC)
    texts = [poison.get(number, f"文本 {number}") for number in range(ITEMS)]
    submit(services, run_id, SPEC, [Item(id=str(number), response=text) for number, text in enumerate(texts)])
    seal(services, run_id)
    return run_id


def ended(services: Services, run_id: str) -> bool:
    return run_status(services.engine, run_id).state.ended


def test_poison_of_every_kind_dies_alone_each_of_its_own_cause(services: Services, fleet: Fleet) -> None:
    poison = {
        5: "[[fake:kill-consumer]] a",
        100: "[[fake:kill-consumer]] b",
        205: "[[fake:raise-in-render]]",
        305: "[[fake:raise-in-read]]",
        405: "[[fake:crash]]",
    }
    fleet.start_collector()
    worker = fleet.start_worker()
    run_id = submitted(services, poison)

    fleet.wait(lambda: ended(services, run_id), timeout_s=120)

    assert worker.poll() is None
    killed = "the guard fake failed: the process that read the item was killed by SIGKILL, 2 times"
    assert {dead.item.id: dead.reason for dead in dead_of(services.engine, run_id)} == {
        "5": killed,
        "100": killed,
        "205": "the guard fake failed: ValueError",
        "305": "the guard fake failed: OverflowError",
        "405": "the prompt killed the device process, or outlived its deadline",
    }
    assert run_status(services.engine, run_id).counts.scored == ITEMS - len(poison)


@pytest.mark.parametrize("victim", ["idle device", "device amid batches", "idle consumer", "consumer at work"])
def test_a_stopped_process_of_the_only_worker_is_replaced_and_nothing_healthy_dies(
    services: Services, fleet: Fleet, victim: str
) -> None:
    fleet.start_collector()
    worker = fleet.start_worker("--fake-item-ms", "10")
    warm = submitted(services, {})
    fleet.wait(lambda: ended(services, warm))  # so that all are ready
    stopped = device_of(worker) if "device" in victim else consumer_of(worker, Lane.BULK)
    if "idle" in victim:
        stopped.send_signal(signal.SIGSTOP)
    run_id = submitted(services, {})
    if "idle" not in victim:
        fleet.wait(lambda: run_status(services.engine, run_id).counts.settled > 0)
        stopped.send_signal(signal.SIGSTOP)

    fleet.wait(lambda: not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE, timeout_s=30)
    fleet.wait(lambda: ended(services, run_id), timeout_s=60)

    assert run_status(services.engine, run_id).counts.scored == ITEMS


def test_a_device_process_stopped_while_it_loads_again_is_killed_and_its_chunks_go_elsewhere(
    services: Services, fleet: Fleet
) -> None:
    fleet.start_collector()
    worker = fleet.start_worker("--fake-item-ms", "10")
    run_id = submitted(services, {})
    fleet.wait(lambda: run_status(services.engine, run_id).counts.settled > 0)
    device_of(worker).kill()
    loading = _next_device(fleet, worker)
    loading.send_signal(signal.SIGSTOP)

    fleet.start_worker("--fake-item-ms", "1")
    fleet.wait(lambda: ended(services, run_id), timeout_s=60)

    assert run_status(services.engine, run_id).counts.scored == ITEMS


def _next_device(fleet: Fleet, worker: subprocess.Popen[bytes]) -> psutil.Process:
    """The device process that takes the place of a dead one, as soon as it is there."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        try:
            device = device_of(worker)
        except (ValueError, psutil.Error):
            return False
        if device.status() != psutil.STATUS_ZOMBIE:
            found.append(device)
        return bool(found)

    fleet.wait(is_there)
    return found[-1]
