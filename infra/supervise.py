"""Processes kept running: started, started again after a pause, given up where they keep dying, ended in order.

Knows nothing about what the processes do. Its owner calls `poll` every so often, always from one thread that lives as
long as the processes should: on Linux a child dies with the *thread* that started it (`infra.process`).
Imports nothing heavy, since the keeper of the embedded servers stands on it.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.process import wait_until

_MOST_DOUBLINGS: Final = 64
"""Beyond any pause; a process that dies for weeks must not overflow a float."""


@dataclass(frozen=True)
class Restart:
    """The rule for starting a process again: after a pause that doubles with each early death, up to the longest.

    A process that lived for `steady_after_s` seconds did not die early; with `from_ready` they count from
    `SupervisedProcess.note_ready`, so that a long start is no life. More than `max_deaths` deaths in a row, each
    but the first an early one, and it is given up; None: never.
    """

    first_pause_s: float = 0.0
    longest_pause_s: float = math.inf
    steady_after_s: float = 60.0
    max_deaths: int | None = None
    from_ready: bool = False

    def pause_s(self, deaths: int) -> float:
        """The pause after so many deaths in a row."""
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(deaths - 1, _MOST_DOUBLINGS))


AT_ONCE: Final = Restart()


@dataclass
class SupervisedProcess:
    """One process and its history. Stages end one after the other, the lowest first."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    restart: Restart = AT_ONCE
    stage: int = 0
    stop_signal: int = signal.SIGTERM
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    """The last one that was started; it may have ended."""
    exits: int = field(default=0, init=False)
    deaths: int = field(default=0, init=False)
    """Exits in a row, each but the first an early one."""
    start_at: float = field(default=0.0, init=False)
    """The earliest next start, in CLOCK_MONOTONIC seconds."""
    _lives_from: float = field(default=0.0, init=False)
    _exit_noted: bool = field(default=True, init=False)

    @property
    def running(self) -> bool:
        """True if the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def given_up(self) -> bool:
        """True if it died too often in a row."""
        return self.restart.max_deaths is not None and self.deaths > self.restart.max_deaths

    @property
    def retired(self) -> bool:
        """True if it has done its work and does not start again."""
        return self.start_at == math.inf

    def retire(self) -> None:
        """Do not start it again."""
        self.start_at = math.inf

    def start_if_due(self) -> bool:
        """Start the process if none is there and its pause is over; True if that was done.

        A start that raises counts as an early death, so that the next one comes after a pause.
        """
        now = time.monotonic()
        if not self._exit_noted or now < self.start_at:
            return False
        self._lives_from = now
        try:
            self.process = self.start()
        except Exception:
            self._plan_next_start()
            raise
        self._lives_from = math.inf if self.restart.from_ready else time.monotonic()
        self._exit_noted = False
        return True

    def note_ready(self) -> None:
        """The process has started what it is for."""
        self._lives_from = min(self._lives_from, time.monotonic())

    def reap(self) -> int | None:
        """The exit code of a process that has ended, once; the next one may start after a pause."""
        if self._exit_noted or self.process is None or (code := self.process.poll()) is None:
            return None
        self._exit_noted = True
        self.exits += 1
        self._plan_next_start()
        return code

    def _plan_next_start(self) -> None:
        now = time.monotonic()
        self.deaths = self.deaths + 1 if now - self._lives_from <= self.restart.steady_after_s else 1
        self.start_at = now + self.restart.pause_s(self.deaths)

    def ask_to_end(self) -> None:
        """Send the signal to stop, if the process lives."""
        if self.process is not None:
            self.process.send_signal(self.stop_signal)  # Popen looks first: its pid may be another process's by now


class Supervisor:
    """Keeps some processes running, and ends them in the order of their stages."""

    def __init__(
        self,
        processes: Sequence[SupervisedProcess] = (),
        *,
        on_exit: Callable[[SupervisedProcess, int], None] = lambda _, __: None,
    ) -> None:
        """`on_exit` gets the exit code, after the next start was planned; what it raises, `poll` raises."""
        self.processes = list(processes)
        self._on_exit = on_exit

    def poll(self) -> None:
        """Note what has ended and start what is due."""
        for process in self.processes:
            if (code := process.reap()) is not None:
                self._on_exit(process, code)
            process.start_if_due()

    def stop(
        self,
        grace_s: float,
        *,
        on_stop: Callable[[SupervisedProcess], None] = lambda _: None,
        on_kill: Callable[[SupervisedProcess], None] = lambda _: None,
        hurried: Callable[[], bool] = lambda: False,
        last_grace_s: float = 0.0,
    ) -> None:
        """Ask stage by stage to end, and wait up to `grace_s` seconds for each; hurried: ask all that are left at once.

        What then still lives is asked again, and killed after `last_grace_s` seconds.
        """
        for stage in sorted({process.stage for process in self.processes}):
            ending = [process for process in self.processes if process.stage == stage and process.running]
            for process in ending:
                on_stop(process)
                process.ask_to_end()
            wait_until(lambda ending=ending: hurried() or not _any_running(ending), timeout_s=grace_s)  # type: ignore[misc]
            if hurried():
                break
        left = [process for process in self.processes if process.running]
        for process in left:
            process.ask_to_end()
        wait_until(lambda: not _any_running(left), timeout_s=last_grace_s)
        for process in left:
            if process.process is not None and process.running:
                on_kill(process)
                process.process.kill()
                process.process.wait()


def spawn(
    command: Sequence[str], environment: Mapping[str, str], *, log: Path | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start one of our commands, which dies with the thread that calls this; with a log, its output goes to the end.

    With `stdout` too, only what it says on standard error does.

    In a session of its own: Ctrl-C is for the command in front, which ends its children in order.
    """
    with log.open("ab") if log else nullcontext() as output:
        return subprocess.Popen(
            command,
            env={**environment, "LIBRA_PARENT_PID": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            start_new_session=True,
        )


def log_tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log; "" where there is none."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else ""


def _any_running(processes: Sequence[SupervisedProcess]) -> bool:
    return any(process.running for process in processes)
