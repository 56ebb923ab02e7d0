"""A fleet of one machine restarts what dies, gives up what cannot start, ends in order. Its parts are shells here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra import supervise
from infra.errors import DeviceError, GuardError
from infra.process import wait_until
from infra.supervise import SupervisedProcess, spawn
from libra_fleet.machine import fleet
from libra_fleet.machine.fleet import FleetProcess, MachineFleet
from schemas.fleet import Announcement

WAIT_S = 20.0
SLEEP = "sleep 60 & wait $!"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., MachineFleet]]:
    """A fleet of shells, one for each script, by kind; its notes are in `made.notes`."""
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(fleet, "_HURRY_S", 0.3)

    def part(kind: Any, script: str, stage: int) -> FleetProcess:
        log = tmp_path / f"{kind}.log"

        def start() -> subprocess.Popen[bytes]:
            started.append(spawn(["sh", "-c", script], os.environ, log=log))
            return started[-1]

        return FleetProcess(kind, SupervisedProcess(kind, start, fleet._RESTART, stage=stage, log=log))

    def made(*, restart: bool = True, **scripts: str) -> MachineFleet:
        notes: list[str] = []
        parts = [part(kind, script, stage) for stage, (kind, script) in enumerate(scripts.items())]
        services: Any = SimpleNamespace(settings=SimpleNamespace(drain_s=600))
        built: Any = MachineFleet(services, parts, notes.append, restart=restart)
        built.notes = notes
        return built  # type: ignore[no-any-return]

    yield made
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a shell's sleep outlives it
        process.wait()


def ended(part: FleetProcess) -> Callable[[], bool]:
    return lambda: part.process.process is not None and not part.process.running


def test_what_dies_is_started_again_after_a_pause_that_grows(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now)
    machine = make(worker="exit 3")
    (worker,) = machine.parts
    pauses = []
    for _ in range(3):
        machine.poll([])
        worker.process.process.wait()
        machine.poll([])
        assert not worker.process.running
        pauses.append(worker.process.start_at - now)
        assert worker.state(now) == f"again in {pauses[-1]:.0f} s"
        now = worker.process.start_at

    assert pauses == [0.5, 1.0, 2.0]
    assert worker.process.exits == 3
    assert "worker ended with exit code 3; again in 0.5 s" in machine.notes[1]


def test_a_guard_that_cannot_be_loaded_is_not_tried_again_and_the_end_of_its_log_is_shown(make: Any) -> None:
    machine = make(worker="echo it lacks config.json; exit 5")
    machine.poll([])
    assert wait_until(ended(machine.parts[0]), timeout_s=WAIT_S)

    with pytest.raises(GuardError, match="it lacks config"):
        machine.poll([])


def test_a_fleet_that_restarts_nothing_takes_every_end_for_an_error(make: Any) -> None:
    machine = make(restart=False, collector="echo out of memory; exit 1")
    machine.poll([])
    assert wait_until(ended(machine.parts[0]), timeout_s=WAIT_S)

    with pytest.raises(DeviceError, match=r"(?s)collector ended by itself.*out of memory"):
        machine.poll([])


def test_a_part_is_ready_once_its_own_process_says_so(make: Any) -> None:
    machine = make(collector=SLEEP)
    (collector,) = machine.parts
    machine.poll([])
    machine.poll([Announcement(kind="collector", state="ready", pid=1, id="collector-elsewhere-1")])
    assert (collector.state(0), machine.all_ready) == ("starting", False)

    machine.poll([Announcement(kind="collector", state="ready", pid=collector.pid, id="x")])
    assert (collector.state(0), machine.all_ready) == ("ready", True)


def test_a_part_that_another_process_of_this_machine_does_is_left_to_that_one(make: Any) -> None:
    machine = make(collector=SLEEP)
    pid = os.getpid()
    other = Announcement(kind="collector", state="ready", pid=pid, id=f"collector-{socket.gethostname()}-{pid}")
    machine.poll([other])
    assert (machine.parts[0].state(0), machine.parts[0].pid, machine.all_ready) == ("ran already", pid, True)

    machine.poll([])
    assert (machine.parts[0].state(0), machine.all_ready) == ("starting", False)


def test_each_stage_ends_before_the_next_is_asked(make: Any) -> None:
    machine = make(gateway=f"trap 'echo gone; exit 0' TERM; {SLEEP}", worker=SLEEP)
    machine.poll([])
    machine.stop()

    assert [note for note in machine.notes if "drains" in note] == ["gateway drains", "worker drains"]
    assert not any(part.process.running for part in machine.parts)
    assert not any("killed" in note for note in machine.notes)


def test_in_a_hurry_nobody_is_waited_for_and_what_does_not_obey_is_killed(make: Any) -> None:
    machine = make(worker=f"trap '' TERM; echo deaf; while :; do {SLEEP}; done", collector=SLEEP)
    machine.poll([])
    worker, collector = machine.parts
    assert wait_until(lambda: "deaf" in worker.process.log.read_text(), timeout_s=WAIT_S)
    machine.stop(lambda: True)

    assert "worker is killed" in machine.notes
    assert worker.process.process.returncode == -signal.SIGKILL
    assert collector.process.process.returncode == -signal.SIGTERM
