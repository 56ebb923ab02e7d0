"""The processes of one machine's fleet: started, watched, started again after a pause, drained in order.

`libra fleet up` polls a `MachineFleet` from its main thread; commands that need a fleet for their own length alone
(`libra judge`, `libra run start`) hold a `LocalFleet`, which does so from a thread of its own.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import redis

from infra.errors import DeviceError, GuardError, LibraError, UsageError
from infra.log import get_logger
from infra.process import python_module
from infra.servers.services import Services
from infra.supervise import Restart, SupervisedProcess, Supervisor, log_tail, spawn
from schemas.fleet import Announcement, ProcessKind, ready

_RESTART: Final = Restart(first_pause_s=0.5, longest_pause_s=30.0)
_BEYOND_DRAIN_S: Final = 10.0
_HURRY_S: Final = 4.0
_POLL_S: Final = 0.1
_LOOK_EVERY_S: Final = 1.0
_HOPELESS: Final[dict[int, type[LibraError]]] = {UsageError.exit_code: UsageError, GuardError.exit_code: GuardError}
"""Exit codes after which the same command fails again: a wrong option, a guard that cannot be loaded."""

log = get_logger(__name__)


@dataclass
class FleetProcess:
    """One part of the fleet: how it announces itself, and the process of ours that does it."""

    kind: ProcessKind
    process: SupervisedProcess
    guard: str | None = None
    other_pid: int | None = None
    """A process that is not ours and does this part already."""
    ready: bool = False

    @property
    def pid(self) -> int | None:
        """The process that does this part, ours or another one."""
        ours = self.process
        return ours.process.pid if ours.running and ours.process else self.other_pid

    def state(self, now: float) -> str:
        """The state in a word or two, for a person."""
        if self.process.running:
            return "ready" if self.ready else "starting"
        if self.other_pid is not None:
            return "ran already"
        return f"again in {max(0.0, self.process.start_at - now):.0f} s" if self.process.exits else "waiting"


def fleet_process(
    services: Services, kind: ProcessKind, command: Sequence[str], *, stage: int, guard: str | None = None
) -> FleetProcess:
    """A part of the fleet that a `libra` command does on these servers; stage 0 is asked to end first."""
    log = services.settings.state_dir / "logs" / (f"{kind}-{guard}.log" if guard else f"{kind}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    start = partial(spawn, python_module("libra_fleet.cli", *command), services.environment(), log=log)
    return FleetProcess(kind, SupervisedProcess(kind, start, _RESTART, stage=stage, log=log), guard)


def collector_process(services: Services) -> FleetProcess:
    """A collector; it ends last, since it settles what the others still finish."""
    return fleet_process(services, "collector", ["collector"], stage=2)


def worker_process(services: Services, guard: str, *options: str, checkpoint: str | None = None) -> FleetProcess:
    """A worker for a guard."""
    named = f"{guard}={checkpoint}" if checkpoint else guard
    return fleet_process(services, "worker", ["worker", "--guard", named, *options], stage=1, guard=guard)


@dataclass
class MachineFleet:
    """Keeps the parts running that no other process does, from one thread that lives as long as they should."""

    services: Services
    parts: Sequence[FleetProcess]
    """In the order in which they start."""
    note: Callable[[str], None] = lambda _: None
    """Gets a line for a person on every start and end."""
    on_start: Callable[[FleetProcess], None] = lambda _: None
    restart: bool = True
    """Start again what ends; otherwise `poll` raises."""
    accept_other_machines: bool = False
    """A process of another machine does a part as well as one of this machine."""

    def poll(self, announced: Iterable[Announcement]) -> None:
        """Start what does not run and is due; see which parts are ready."""
        announced = list(announced)
        for part in self.parts:
            if (code := part.process.reap()) is not None:
                self._on_exit(part, code)
            if part.process.running:
                if not part.ready and any(a.pid == part.pid for a in ready(announced, part.kind, part.guard)):
                    part.ready = True
                    self.note(f"{part.kind} is ready")
                continue
            other = self._other(part, announced)
            if other is not None and other != part.other_pid:
                self.note(f"{part.kind}: process {other} does this already")
            part.other_pid = other
            if other is None and part.process.start_if_due():
                self.on_start(part)
                self.note(f"{part.kind} started, process {part.pid}")

    @property
    def all_ready(self) -> bool:
        """True if every part is done by some process."""
        return all(part.ready if part.process.running else part.other_pid is not None for part in self.parts)

    def stop(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Ask all to end: what takes work in first, then what does it, last what settles it. Hurried: all at once.

        What does not end in time is asked again (a worker then hands back what it holds), and killed.
        """
        Supervisor([part.process for part in self.parts]).stop(
            self.services.settings.drain_s + _BEYOND_DRAIN_S,
            on_stop=lambda process: self.note(f"{process.name} drains"),
            on_kill=lambda process: self.note(f"{process.name} is killed"),
            hurried=hurried,
            last_grace_s=_HURRY_S,
        )

    def _on_exit(self, part: FleetProcess, code: int) -> None:
        part.ready = False
        process = part.process
        tail = "" if process.log is None else log_tail(process.log)
        if not self.restart:
            whose = f" for {part.guard}" if part.guard else ""
            error = GuardError if code == GuardError.exit_code else DeviceError
            raise error(f"the {part.kind}{whose} ended by itself (log: {process.log}):\n{tail}")
        if code in _HOPELESS:
            raise _HOPELESS[code](f"the {part.kind} cannot start (log: {process.log}):\n{tail}")
        pause_s = process.restart.pause_s(process.deaths)
        self.note(f"{part.kind} ended with exit code {code}; again in {pause_s:g} s (log: {process.log})")

    def _other(self, part: FleetProcess, announced: Iterable[Announcement]) -> int | None:
        """A process that is not ours and does this part."""
        for process in ready(announced, part.kind, part.guard):
            here = f"{socket.gethostname()}-{process.pid}" in process.id
            # One of this machine that was killed stays announced for some seconds.
            if process.pid is not None and (_lives(process.pid) if here else self.accept_other_machines):
                return process.pid
        return None


class LocalFleet:
    """A collector, and a ready worker where a guard is named, until the context ends.

    A worker or a collector that is up already is used as it is; if it goes away meanwhile, ours takes its place.
    A thread of its own starts and stops the processes: on Linux they die with the thread that started them.

    Raises:
        DeviceError: on entry, a process ended before it was ready; the message holds the end of its log.
        GuardError: likewise, because the guard cannot be loaded.
    """

    def __init__(
        self,
        services: Services,
        guard: str | None,
        *,
        worker_options: Sequence[str] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        parts = [collector_process(services)]
        if guard is not None:
            parts.append(worker_process(services, guard, *worker_options))

        def on_start(part: FleetProcess) -> None:
            if part.guard is not None:
                say(f"starting a worker for {part.guard}")

        self._services = services
        self._fleet = MachineFleet(services, parts, on_start=on_start, restart=False, accept_other_machines=True)
        self._leaving = threading.Event()
        self._ready = threading.Event()
        self._error: Exception | None = None
        # A daemon: after a second Ctrl-C the command leaves at once, and the processes die with it.
        self._thread = threading.Thread(target=self._run, name="local-fleet", daemon=True)

    def __enter__(self) -> LocalFleet:
        self._services.engine  # noqa: B018 - the ledger is brought to its present shape before a collector asks for it
        self._thread.start()
        try:
            while not self._ready.wait(_POLL_S):
                self.check()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def check(self) -> None:
        """Raise the error that a process of ours has ended with, if one has."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._leaving.is_set():
                try:
                    self._fleet.poll(self._services.coordination.presence.announced())
                    if self._fleet.all_ready:
                        self._ready.set()
                except redis.RedisError as error:
                    log.warning("fleet_unwatched", error=str(error))  # it may work on; the next look shows
                self._leaving.wait(_LOOK_EVERY_S if self._ready.is_set() else _POLL_S)
        except Exception as error:  # noqa: BLE001 - a thread's edge: `check` raises it where it is seen
            self._error = error
        finally:
            self._fleet.stop()


def worker_is_up(services: Services, guard: str) -> bool:
    """True if some worker takes this guard's chunks now."""
    return any(
        not services.embedded or (process.pid is not None and _lives(process.pid))
        for process in ready(services.coordination.presence.announced(), "worker", guard)
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
