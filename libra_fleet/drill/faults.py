"""How each fault is done: kill -9 of one process that the drill has started, a stop signal, or an emptied broker."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis

from infra.errors import UsageError
from infra.servers.places import Places
from infra.servers.services import Services
from libra_fleet.drill.crew import Crew, Member
from libra_fleet.drill.plan import Fault

if TYPE_CHECKING:
    import psutil

_CHILD_OF_WORKER: Final = {
    Fault.DEVICE: ("worker.device",),
    Fault.LIVE_CONSUMER: ("worker.consumer.app", '"lane": "live"'),
    Fault.BULK_CONSUMER: ("worker.consumer.app", '"lane": "bulk"'),
    Fault.PAUSE: ("worker.consumer.app", '"lane": "bulk"'),
}
"""Words in the command line of the worker's child that a fault is for."""
_MEMBERS: Final = {Fault.WORKER: "worker", Fault.COLLECTOR: "collector", Fault.PRODUCER: "producer"}


class FaultInjector:
    """Does what the plan says, to what a seeded choice falls on.

    Raises:
        UsageError: psutil is not installed.
    """

    def __init__(self, services: Services, crew: Crew, state_dir: Path | None, chance: random.Random) -> None:
        try:
            import psutil  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError("libra fleet drill needs psutil: pip install 'libra-fleet[drill]'") from error
        self._psutil = psutil
        self._services = services
        self._crew = crew
        self._state_dir = state_dir
        self._chance = chance
        self._paused: psutil.Process | None = None

    def inject(self, fault: Fault) -> str | None:
        """Do it and say what was hit; None where there is nothing to hit just now."""
        if fault is Fault.FLUSH:
            return self._flush()
        if fault.needs_own_servers:
            return self._kill(self._server(fault.value))
        if fault in _MEMBERS:
            member = self._crew.pick(_MEMBERS[fault], self._chance)
            return self._kill(self._process(member))
        child = self._child(fault)
        if fault is Fault.PAUSE and child is not None:
            child.suspend()
            self._paused = child
            return f"{_named(child)} stopped"
        return self._kill(child)

    def resume(self) -> None:
        """End a pause, if there is one."""
        paused, self._paused = self._paused, None
        if paused is not None and paused.is_running():
            paused.send_signal(signal.SIGCONT)

    def _flush(self) -> str:
        with redis.Redis.from_url(self._services.redis_url) as client:
            if self._state_dir is not None:
                client.flushall()
            else:
                forget_namespace(client, self._services.settings.namespace)
        return "everything on the broker"

    def _kill(self, process: psutil.Process | None) -> str | None:
        if process is None:
            return None
        try:
            name = _named(process)
            process.kill()
        except self._psutil.NoSuchProcess:
            return None
        return name

    def _process(self, member: Member | None) -> psutil.Process | None:
        if member is None or member.process is None:
            return None
        try:
            return self._psutil.Process(member.process.pid)
        except self._psutil.NoSuchProcess:
            return None

    def _child(self, fault: Fault) -> psutil.Process | None:
        worker = self._process(self._crew.pick("worker", self._chance))
        if worker is None:
            return None
        try:
            for child in worker.children(recursive=True):
                line = " ".join(child.cmdline())
                if all(word in line for word in _CHILD_OF_WORKER[fault]):
                    return child
        except self._psutil.NoSuchProcess:
            return None
        return None

    def _server(self, program: str) -> psutil.Process | None:
        """An embedded server of the drill's own, by the keeper that is its parent."""
        if self._state_dir is None:
            return None
        keeper = self._psutil.Process(int(Places(self._state_dir).keeper_lock.read_text()))
        return next((child for child in keeper.children() if child.name().startswith(program)), None)


def forget_namespace(client: redis.Redis, namespace: str) -> None:
    """Delete every key of a namespace and no other."""
    for key in client.scan_iter(f"{namespace}:*", count=1_000):
        client.delete(key)


def _named(process: psutil.Process) -> str:
    return f"{process.name()} {process.pid}"
