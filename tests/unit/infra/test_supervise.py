"""A supervised process starts again after its pause, is given up when it keeps dying, and is found dead only once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra import supervise
from infra.supervise import Restart, SupervisedProcess, Supervisor, log_tail, spawn


def shell(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now[0])
    return now


def die(process: SupervisedProcess) -> int:
    assert process.start_if_due()
    assert process.process is not None
    process.process.wait()
    code = process.reap()
    assert code is not None
    return code


def test_the_pause_doubles_with_each_early_death_up_to_the_longest(clock: list[float]) -> None:
    process = SupervisedProcess("p", lambda: shell("exit 3"), Restart(first_pause_s=1, longest_pause_s=5))
    pauses = []
    for _ in range(4):
        assert die(process) == 3
        assert not process.start_if_due()
        pauses.append(process.start_at - clock[0])
        clock[0] = process.start_at

    assert pauses == [1, 2, 4, 5]
    assert process.exits == 4


def test_a_process_that_lived_long_enough_starts_its_count_of_deaths_again(clock: list[float]) -> None:
    process = SupervisedProcess("p", lambda: shell("exit 0"), Restart(steady_after_s=10, max_deaths=2))
    die(process)
    die(process)
    assert process.start_if_due()
    assert process.process is not None
    process.process.wait()
    clock[0] += 11
    process.reap()
    assert (process.deaths, process.given_up) == (1, False)

    die(process)
    die(process)
    assert process.given_up


def test_a_start_that_raises_counts_as_an_early_death_so_that_the_next_one_waits(clock: list[float]) -> None:
    def start() -> subprocess.Popen[bytes]:
        raise OSError("No space left on device")

    process = SupervisedProcess("p", start, Restart(first_pause_s=2))
    with pytest.raises(OSError, match="No space"):
        process.start_if_due()

    assert not process.start_if_due()
    clock[0] += 3
    with pytest.raises(OSError, match="No space"):
        process.start_if_due()


def test_a_process_may_die_for_weeks() -> None:
    assert Restart(first_pause_s=1, longest_pause_s=30).pause_s(100_000) == 30


def test_an_exit_is_reported_once_and_a_retired_process_does_not_start_again() -> None:
    exits: list[tuple[str, int]] = []

    def on_exit(process: SupervisedProcess, code: int) -> None:
        exits.append((process.name, code))
        process.retire()

    supervisor = Supervisor([SupervisedProcess("once", lambda: shell("exit 4"))], on_exit=on_exit)
    supervisor.poll()
    (process,) = supervisor.processes
    assert process.process is not None
    process.process.wait()
    supervisor.poll()
    supervisor.poll()

    assert exits == [("once", 4)]
    assert (process.retired, process.running) == (True, False)


def test_a_process_gets_the_signal_that_stops_it() -> None:
    process = SupervisedProcess("p", lambda: shell("sleep 60"), stop_signal=signal.SIGUSR1)
    supervisor = Supervisor([process])
    supervisor.poll()
    supervisor.stop(20)

    assert process.process is not None
    assert process.process.returncode == -signal.SIGUSR1


def test_a_spawned_command_knows_its_parent_and_writes_to_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    process = spawn(["sh", "-c", "echo $LIBRA_PARENT_PID; echo to stderr >&2"], os.environ, log=log)
    process.wait()

    assert sorted(log_tail(log, 3).splitlines()) == sorted(["before", str(os.getpid()), "to stderr"])
    assert log_tail(log, 1) != "before"
    assert log_tail(tmp_path / "no such log") == ""


def test_the_keeper_imports_nothing_heavy() -> None:
    """Every start of the embedded servers waits for it."""
    program = (
        "import sys; import infra.servers.keeper; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('pydantic', 'sqlalchemy', 'redis', 'kombu', 'celery', 'psycopg', 'structlog', 'schemas')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_start_that_takes_long_is_no_life(clock: list[float]) -> None:
    """A model that loads for ninety seconds and dies of its first batch must be given up like any other."""
    process = SupervisedProcess("p", lambda: shell("exit 0"), Restart(steady_after_s=60, max_deaths=2, from_ready=True))
    for _ in range(3):
        assert process.start_if_due()
        assert process.process is not None
        process.process.wait()
        clock[0] += 90
        process.note_ready()
        clock[0] += 1
        process.reap()
    assert (process.deaths, process.given_up) == (3, True)


def test_after_a_long_life_since_it_was_ready_the_count_begins_again(clock: list[float]) -> None:
    process = SupervisedProcess("p", lambda: shell("exit 0"), Restart(steady_after_s=60, max_deaths=2, from_ready=True))
    die(process)
    assert process.start_if_due()
    assert process.process is not None
    process.process.wait()
    process.note_ready()
    clock[0] += 61
    process.reap()
    assert process.deaths == 1
