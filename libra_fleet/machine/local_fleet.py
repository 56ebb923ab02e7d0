"""A fleet of one machine for the length of a command: a worker and a collector as child processes.

Used where no servers are configured, so that `libra run start` works on a bare machine. A worker or a
collector that is up already is used as it is; if it goes away meanwhile, ours takes its place.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from infra.errors import DeviceError, GuardError
from infra.log import get_logger
from infra.process import python_module, stop
from infra.servers.services import Services
from schemas.fleet import ProcessKind, ready

_POLL_S: Final = 0.1
_LOOK_EVERY_S: Final = 1.0
_LOG_TAIL_LINES: Final = 8

Say = Callable[[str], None]

log = get_logger(__name__)


@dataclass
class _Post:
    """A part of the fleet: how it announces itself, how to start it, and our own process where we did."""

    kind: ProcessKind
    guard: str | None
    command: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes] | None = None


class LocalFleet:
    """Keeps a collector, and a worker where a guard is named, available from a thread of its own.

    One thread starts and stops the processes: on Linux they die with the thread that started them.
    """

    def __init__(self, services: Services, guard: str | None, worker_options: Sequence[str], say: Say) -> None:
        logs = services.settings.state_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._services = services
        self._say = say
        self._posts = [_Post("collector", None, ("collector",), logs / "collector.log")]
        if guard is not None:
            command = ("worker", "--guard", guard, *worker_options)
            self._posts.append(_Post("worker", guard, command, logs / f"worker-{guard}.log"))
        self._leaving = threading.Event()
        self._ready = threading.Event()
        self._error: Exception | None = None
        # A daemon: whoever does not wait for it (a second Ctrl-C) leaves at once, and the processes die with it.
        self._thread = threading.Thread(target=self._run, name="local-fleet", daemon=True)

    def start(self) -> None:
        """Return once everything is ready.

        Raises:
            DeviceError: a process ended before it was ready; the message holds the end of its log.
            GuardError: likewise, because the guard cannot be loaded.
        """
        self._thread.start()
        while not self._ready.wait(_POLL_S):
            self.check()

    def check(self) -> None:
        """Say what went wrong, if something did.

        Raises:
            DeviceError: a process of ours ended by itself.
            GuardError: it could not load the guard.
        """
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End what we started and wait for it."""
        self._leaving.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._leaving.is_set():
                self._look()
                self._leaving.wait(_LOOK_EVERY_S if self._ready.is_set() else _POLL_S)
        except Exception as error:  # noqa: BLE001 - a thread's edge: `check` raises it where it is seen
            self._error = error
        finally:
            for post in reversed(self._posts):
                if post.process is not None:
                    stop(post.process, grace_s=self._services.settings.drain_s)

    def _look(self) -> None:
        try:
            provided = [self._provided(post) for post in self._posts]  # all of them start at once
        except redis.RedisError as error:
            log.warning("fleet_unwatched", error=str(error))  # it may work on; the next look tells
            return
        if all(provided):
            self._ready.set()

    def _provided(self, post: _Post) -> bool:
        """Whether somebody does this part; starts it where nobody is about to.

        Raises:
            DeviceError: our process for it is gone.
            GuardError: it could not load the guard.
        """
        if post.process is None:
            if _ready(self._services, post.kind, post.guard):
                return True
            if post.guard is not None:
                self._say(f"starting a worker for {post.guard}")
            post.process = start_member(self._services, post.command, post.log)
        elif post.process.poll() is not None:
            tail = "\n".join(post.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
            whose = f" for {post.guard}" if post.guard else ""
            unloadable = post.process.returncode == GuardError.exit_code
            error = GuardError if unloadable else DeviceError
            raise error(f"the {post.kind}{whose} ended by itself (log: {post.log}):\n{tail}")
        return _ready(self._services, post.kind, post.guard)


@contextmanager
def local_fleet(
    services: Services, guard: str | None, *, worker_options: Sequence[str] = (), say: Say = lambda _: None
) -> Iterator[LocalFleet]:
    """Have a collector, and a ready worker for the guard (none: no worker), until the context ends.

    Raises:
        DeviceError: a process ended before it was ready.
        GuardError: likewise, because the guard cannot be loaded.
    """
    services.engine  # noqa: B018 - the ledger is brought to its present shape before a collector asks for it
    fleet = LocalFleet(services, guard, worker_options, say)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()


def worker_is_up(services: Services, guard: str) -> bool:
    """Whether some worker takes this guard's chunks now."""
    return _ready(services, "worker", guard)


def _ready(services: Services, role: ProcessKind, guard: str | None) -> bool:
    return any(
        not (services.embedded and is_gone(process.pid))
        for process in ready(services.coordination.presence.announced(), role, guard)
    )


def is_gone(pid: int | None) -> bool:
    """Whether a process of this machine is gone: one that was killed stays announced for some seconds."""
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def start_member(services: Services, command: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    """Start a `libra` command on these servers, its output in a file. It dies with the thread that calls this."""
    with log_file.open("ab") as output:
        return subprocess.Popen(
            python_module("libra_fleet.cli", *command),
            env={**services.environment(), "LIBRA_PARENT_PID": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the command in front; it stops us in order
        )
