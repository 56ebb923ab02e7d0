"""The processes of one machine's fleet: started, watched, started again after a pause, drained in order.

Knows nothing of screens. Everything must be called from one thread that lives as long as the processes should: on
Linux they die with the thread that started them.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.errors import GuardError, LibraError, UsageError
from infra.servers.services import Services
from libra_fleet.machine.local_fleet import is_gone, start_member
from schemas.fleet import Announcement, ProcessKind, ready

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_AFTER_S: Final = 60.0
_POLL_S: Final = 0.1
_BEYOND_DRAIN_S: Final = 10.0
_HURRY_S: Final = 4.0
_LAST_WORDS: Final = 6
_HOPELESS: Final[dict[int, type[LibraError]]] = {UsageError.exit_code: UsageError, GuardError.exit_code: GuardError}
"""Exit codes after which the same command fails again: a wrong option, a guard that cannot be loaded."""


@dataclass
class Member:
    """One process. `kind` as it announces itself, `stage` when it is asked to end (0 first)."""

    kind: ProcessKind
    command: Sequence[str]
    log: Path
    stage: int
    guard: str | None = None
    process: subprocess.Popen[bytes] | None = None
    other_pid: int | None = None
    ready: bool = False
    started_at: float = 0.0
    restarts: int = 0
    quick_deaths: int = 0
    start_at: float = field(default=0.0)

    @property
    def running(self) -> bool:
        """Whether a process of ours lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process that does this part, ours or another one."""
        return self.process.pid if self.running and self.process else self.other_pid

    def state(self, now: float) -> str:
        """In a word or two, for a person."""
        if self.running:
            return "ready" if self.ready else "starting"
        if self.other_pid is not None:
            return "ran already"
        return f"again in {max(0.0, self.start_at - now):.0f} s" if self.restarts else "waiting"


class Crew:
    """Keeps the members running."""

    def __init__(self, services: Services, members: Sequence[Member], note: Callable[[str], None]) -> None:
        self._services = services
        self._note = note
        self.members = members

    def tend(self, announced: Iterable[Announcement]) -> None:
        """Start what does not run and is due; see who is ready. A part that somebody else does here is left to him.

        Raises:
            UsageError: a process ended because of its options.
            GuardError: the guard cannot be loaded.
        """
        announced = list(announced)
        now = time.monotonic()
        for member in self.members:
            if member.process is not None and not member.running:
                self._on_exit(member, now)
            if member.running:
                self._see_ready(member, announced, now)
                continue
            other = self._other(member, announced)
            if other is not None and other != member.other_pid:
                self._note(f"{member.kind}: process {other} does this already")
            member.other_pid = other
            if other is None and now >= member.start_at:
                member.process = start_member(self._services, member.command, member.log)
                member.started_at, member.ready = now, False
                self._note(f"{member.kind} started, process {member.process.pid}")

    @property
    def all_ready(self) -> bool:
        """Whether every part is done by somebody."""
        return all(member.ready if member.running else member.other_pid is not None for member in self.members)

    def _see_ready(self, member: Member, announced: Sequence[Announcement], now: float) -> None:
        if not member.ready and member.process and _is_ready(announced, member, member.process.pid):
            member.ready = True
            self._note(f"{member.kind} is ready")
        if now - member.started_at > _STEADY_AFTER_S:
            member.quick_deaths = 0

    def _on_exit(self, member: Member, now: float) -> None:
        code = member.process.returncode if member.process else 0
        member.process, member.ready = None, False
        if code in _HOPELESS:
            raise _HOPELESS[code](f"the {member.kind} cannot start (log: {member.log}):\n{last_words(member.log)}")
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**member.quick_deaths)
        member.quick_deaths += 1
        member.restarts += 1
        member.start_at = now + pause_s
        self._note(f"{member.kind} ended with exit code {code}; again in {pause_s:g} s (log: {member.log})")

    def _other(self, member: Member, announced: Iterable[Announcement]) -> int | None:
        """A process of this machine, not ours, that does this part."""
        for process in ready(announced, member.kind, member.guard):
            here = f"{socket.gethostname()}-{process.pid}" in process.id
            if here and process.pid is not None and not is_gone(process.pid):
                return process.pid
        return None

    def stop(self, hurried: Callable[[], bool]) -> None:
        """Ask all to end: who takes work in first, then who does it, last who settles it. Hurried: all at once.

        What does not end in time is killed.
        """
        for stage in sorted({member.stage for member in self.members}):
            ending = [member for member in self.members if member.stage == stage and member.running]
            for member in ending:
                self._note(f"{member.kind} drains")
                _signal(member)
            self._wait(ending, self._services.settings.drain_s + _BEYOND_DRAIN_S, hurried)
            if hurried():
                break
        left = [member for member in self.members if member.running]
        for member in left:
            _signal(member)  # a worker that was asked before hands back what it holds
        self._wait(left, _HURRY_S, lambda: False)
        for member in left:
            if member.running and member.process:
                self._note(f"{member.kind} is killed")
                member.process.kill()
                member.process.wait()

    def _wait(self, members: Sequence[Member], seconds: float, hurried: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while any(member.running for member in members) and time.monotonic() < deadline and not hurried():
            time.sleep(_POLL_S)


def last_words(log: Path) -> str:
    """The end of a log."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join(lines[-_LAST_WORDS:])


def _is_ready(announced: Iterable[Announcement], member: Member, pid: int) -> bool:
    return any(process.pid == pid for process in ready(announced, member.kind, member.guard))


def _signal(member: Member) -> None:
    if member.running and member.process:
        member.process.send_signal(signal.SIGTERM)
