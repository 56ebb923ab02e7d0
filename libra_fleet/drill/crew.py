"""The fleet under drill: every process restarted as soon as it ends, as a service manager would.

All processes die with the drill. They must be started from one thread that lives as long as they do.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.process import module_path, python_module, stop
from infra.servers.services import Services

RESTART_PAUSE_S: Final = 0.2
_GRACE_S: Final = 20.0
_LOG_TAIL_LINES: Final = 12


@dataclass
class Member:
    """One process of the fleet. `until_done`: it is finished, not restarted, once it has ended well."""

    kind: str
    command: Sequence[str]
    log: Path
    until_done: bool = False
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = 0.0
    restarts: int = -1

    @property
    def done(self) -> bool:
        """Whether it has ended well and shall not start again."""
        return self.until_done and self.process is not None and self.process.poll() == 0

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None


class Crew:
    """Starts members and keeps them running."""

    def __init__(self, services: Services, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {
            **services.environment(),
            "PYTHONPATH": module_path(),
            "LIBRA_PARENT_PID": str(os.getpid()),
            **environment,
        }
        self.members: list[Member] = []

    def add(self, kind: str, *command: str, until_done: bool = False) -> Member:
        """Take on a member; `tend` starts it."""
        member = Member(kind, command, self._folder / f"{kind}-{len(self.members)}.log", until_done)
        self.members.append(member)
        return member

    def tend(self) -> None:
        """Start what is not running, each after a short pause."""
        for member in self.members:
            if member.running or member.done:
                continue
            if member.process is not None and not member.restart_at:
                member.restart_at = time.monotonic() + RESTART_PAUSE_S
            if time.monotonic() >= member.restart_at:
                member.process = self._start(member)
                member.restart_at = 0.0
                member.restarts += 1

    def _start(self, member: Member) -> subprocess.Popen[bytes]:
        with member.log.open("ab") as output:
            return subprocess.Popen(
                python_module("libra_fleet.cli", *member.command),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def pick(self, kind: str, chance: random.Random) -> Member | None:
        """A running member of a kind, or None where none runs."""
        running = [member for member in self.members if member.kind == kind and member.running]
        return chance.choice(running) if running else None

    def last_words(self) -> str:
        """The end of every log."""
        words = []
        for member in self.members[-8:]:
            if member.log.exists():
                lines = member.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
                words.append("\n".join([f"{member.log}:", *(f"  {line}" for line in lines)]))
        return "\n".join(words)

    def stop(self) -> None:
        """End everything, the youngest first."""
        for member in reversed(self.members):
            if member.process is not None:
                stop(member.process, grace_s=_GRACE_S)
