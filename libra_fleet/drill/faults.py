"""Faults: the plan, which the seed alone decides, and how each is done.

A fault is a kill -9 of one process that the drill has started, a stop signal, or an emptied broker.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import redis

from infra.errors import UsageError
from infra.servers.places import Places
from infra.servers.services import Services
from infra.supervise import Supervisor

if TYPE_CHECKING:
    import psutil

_LONGEST_GAP_S: Final = 0.5
_PAUSE_S: Final = (0.5, 4.0)


class Fault(StrEnum):
    """A thing that a drill does to a fleet."""

    DEVICE = "device"
    LIVE_CONSUMER = "live-consumer"
    BULK_CONSUMER = "bulk-consumer"
    WORKER = "worker"
    COLLECTOR = "collector"
    PRODUCER = "producer"
    PAUSE = "pause"
    FLUSH = "flush"
    VALKEY = "valkey"
    POSTGRES = "postgres"

    @property
    def needs_own_servers(self) -> bool:
        """True if it kills a server, which a drill does to its own ones only."""
        return self in (Fault.VALKEY, Fault.POSTGRES)


Mix = dict[Fault, int]
"""Frequency of each fault, relative to the others."""

EVERYTHING: Final[Mix] = dict.fromkeys(Fault, 1)


class Planned(NamedTuple):
    """A fault to come: `gap_s` after the fleet has recovered from the one before. `lasts_s` matters for a pause."""

    fault: Fault
    gap_s: float
    lasts_s: float


def plan(seed: int, mix: Mix) -> Iterator[Planned]:
    """Faults without end. Each round holds every fault as often as the mix says, in an order of its own."""
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    while True:
        turn = [fault for fault, weight in mix.items() for _ in range(weight)]
        chance.shuffle(turn)
        for fault in turn:
            lasts_s = chance.uniform(*_PAUSE_S) if fault is Fault.PAUSE else 0.0
            yield Planned(fault, chance.uniform(0, _LONGEST_GAP_S), lasts_s)


def parse_mix(text: str) -> Mix:
    """A mix such as `worker=3,valkey=1`; a name alone counts once."""
    mix: Mix = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in set(Fault) or not (weight or "1").isdecimal() or not int(weight or "1"):
            raise UsageError(f"--mix {part.strip()!r}: expected FAULT or FAULT=WEIGHT, of {', '.join(Fault)}")
        mix[Fault(name)] = int(weight or "1")
    return mix


_CHILD_OF_WORKER: Final = {
    Fault.DEVICE: ("worker.device",),
    Fault.LIVE_CONSUMER: ("worker.consumer.app", '"lane": "live"'),
    Fault.BULK_CONSUMER: ("worker.consumer.app", '"lane": "bulk"'),
    Fault.PAUSE: ("worker.consumer.app", '"lane": "bulk"'),
}
"""Words in the command line of the worker's child that a fault is for: as an operator would find it. That a worker
announced its children's pids, for the drill alone, would be one more thing on the wire."""
_PROCESSES: Final = {Fault.WORKER: "worker", Fault.COLLECTOR: "collector", Fault.PRODUCER: "producer"}


class FaultInjector:
    """Do what the plan says to a process that a seeded choice falls on."""

    def __init__(self, services: Services, fleet: Supervisor, state_dir: Path | None, chance: random.Random) -> None:
        try:
            import psutil  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError("libra fleet drill needs psutil: pip install 'libra-fleet[drill]'") from error
        self._psutil = psutil
        self._services = services
        self._fleet = fleet
        self._state_dir = state_dir
        self._chance = chance
        self._paused: psutil.Process | None = None

    def inject(self, fault: Fault) -> str | None:
        """Do it and return a description of what was hit; None where there is nothing to hit just now."""
        if fault is Fault.FLUSH:
            with redis.Redis.from_url(self._services.redis_url) as client:
                if self._state_dir is not None:
                    client.flushall()
                else:
                    forget_namespace(client, self._services.settings.namespace)
            return "everything on the broker"
        try:
            process = self._find(fault)
            if process is None:
                return None
            name = f"{process.name()} {process.pid}"
            if fault is Fault.PAUSE:
                process.suspend()
                self._paused = process
                return f"{name} stopped"
            process.kill()
        except self._psutil.NoSuchProcess:
            return None
        return name

    def resume(self) -> None:
        """End a pause, if there is one."""
        paused, self._paused = self._paused, None
        if paused is not None and paused.is_running():
            paused.send_signal(signal.SIGCONT)

    def _find(self, fault: Fault) -> psutil.Process | None:
        """A process that the fault is for; an embedded server of the drill's own by the keeper that is its parent."""
        if fault.needs_own_servers:
            if self._state_dir is None:
                return None
            keeper = self._psutil.Process(int(Places(self._state_dir).keeper_lock.read_text()))
            return next((child for child in keeper.children() if child.name().startswith(fault.value)), None)
        kind = _PROCESSES.get(fault, "worker")
        running = [
            each.process.pid for each in self._fleet.processes if each.name == kind and each.running and each.process
        ]
        if not running:
            return None
        process = self._psutil.Process(self._chance.choice(running))
        if fault in _PROCESSES:
            return process
        children = ((child, " ".join(child.cmdline())) for child in process.children(recursive=True))
        return next((child for child, line in children if all(word in line for word in _CHILD_OF_WORKER[fault])), None)


def forget_namespace(client: redis.Redis, namespace: str) -> None:
    """Delete every key of a namespace and no other."""
    for key in client.scan_iter(f"{namespace}:*", count=1_000):
        client.delete(key)
