"""A crew starts again what dies, gives up what cannot start, ends in order or in a hurry. Members are small shells."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.errors import GuardError
from infra.process import wait_until
from libra_fleet.machine import crew
from libra_fleet.machine.crew import Crew, Member
from schemas.fleet import Announcement

WAIT_S = 20.0
SLEEP = "sleep 60 & wait $!"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Crew]:
    """A crew of shells, one for each script, by kind; its notes are in `crew.notes`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(_: object, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(["sh", "-c", *command], stdout=output, stderr=output, start_new_session=True)
        started.append(process)
        return process

    monkeypatch.setattr(crew, "start_member", start)
    monkeypatch.setattr(crew, "_HURRY_S", 0.3)

    def made(**scripts: str) -> Crew:
        notes: list[str] = []
        members = [
            Member(kind, (script,), tmp_path / f"{kind}.log", stage=stage)
            for stage, (kind, script) in enumerate(scripts.items())
        ]
        services: Any = SimpleNamespace(settings=SimpleNamespace(drain_s=600))
        built: Any = Crew(services, members, notes.append)
        built.notes = notes
        return built  # type: ignore[no-any-return]

    yield made
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a shell's sleep outlives it
        process.wait()


def ended(member: Member) -> Callable[[], bool]:
    return lambda: member.process is not None and member.process.poll() is not None


def test_what_dies_is_started_again_after_a_pause_that_grows(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(crew.time, "monotonic", lambda: now)
    hands = make(worker="exit 3")
    (worker,) = hands.members
    pauses = []
    for _ in range(3):
        hands.tend([])
        assert worker.process
        worker.process.wait()
        hands.tend([])
        assert not worker.running
        pauses.append(worker.start_at - now)
        assert worker.state(now) == f"again in {pauses[-1]:.0f} s"
        now = worker.start_at

    assert pauses == [0.5, 1.0, 2.0]
    assert worker.restarts == 3
    assert "worker ended with exit code 3; again in 0.5 s" in hands.notes[1]


def test_a_guard_that_cannot_be_loaded_is_not_tried_again_and_its_last_words_are_told(make: Any) -> None:
    hands = make(worker="echo it lacks config.json; exit 5")
    hands.tend([])
    assert wait_until(ended(hands.members[0]), timeout_s=WAIT_S)

    with pytest.raises(GuardError, match="it lacks config"):
        hands.tend([])


def test_a_part_is_ready_once_its_own_process_says_so(make: Any) -> None:
    hands = make(collector=SLEEP)
    (collector,) = hands.members
    hands.tend([])
    hands.tend([Announcement(kind="collector", state="ready", pid=1, id="collector-elsewhere-1")])
    assert (collector.state(0), hands.all_ready) == ("starting", False)

    hands.tend([Announcement(kind="collector", state="ready", pid=collector.pid, id="x")])
    assert (collector.state(0), hands.all_ready) == ("ready", True)


def test_each_stage_ends_before_the_next_is_asked(make: Any) -> None:
    hands = make(gateway=f"trap 'echo gone; exit 0' TERM; {SLEEP}", worker=SLEEP)
    hands.tend([])
    hands.stop(lambda: False)

    assert [note for note in hands.notes if "drains" in note] == ["gateway drains", "worker drains"]
    assert not any(member.running for member in hands.members)
    assert not any("killed" in note for note in hands.notes)


def test_in_a_hurry_nobody_is_waited_for_and_who_does_not_obey_is_killed(make: Any) -> None:
    hands = make(worker=f"trap '' TERM; echo deaf; while :; do {SLEEP}; done", collector=SLEEP)
    hands.tend([])
    log = hands.members[0].log
    assert wait_until(lambda: log.read_text() == "deaf\n", timeout_s=WAIT_S)
    hands.stop(lambda: True)

    assert "worker is killed" in hands.notes
    assert not any(member.running for member in hands.members)
