"""The table of faults, and the plan of a drill, which its seed alone decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from infra.errors import UsageError
from libra_fleet.drill import process_faults as processes
from libra_fleet.drill import server_faults as servers
from libra_fleet.drill import work_faults as work
from libra_fleet.drill.ground import Ground, Strike

_LONGEST_GAP_S: Final = 0.5


class Lasts(Enum):
    """How long a fault lasts."""

    NO_TIME = auto()
    SECONDS = auto()
    BEYOND_LEASES = auto()
    """Longer than every lease, and so long that others have recovered meanwhile or broken the bound."""


class Needs(Enum):
    """What a fault needs besides the rights of a session."""

    NOTHING = auto()
    OWN_SERVERS = auto()
    OWN_DISK = auto()
    """A small file system under the servers of the drill's own: root on Linux."""


@dataclass(frozen=True)
class Fault:
    """A thing that a drill does to a fleet.

    `inject` gives None where there is nothing to hit just now. `loses_queue`: the broker forgets what is queued;
    `loses_commits`: the ledger forgets what was committed lately;
    `stops_feed`: a producer's own run stands still with it.
    """

    name: str
    what: str
    inject: Callable[[Ground], Strike | None]
    lasts: Lasts = Lasts.NO_TIME
    needs: Needs = Needs.NOTHING
    loses_queue: bool = False
    loses_commits: bool = False
    stops_feed: bool = False

    @property
    def others_go_on(self) -> bool:
        """True if the fault is one process's or one item's: the bound for all others counts from its start."""
        return self.lasts is Lasts.BEYOND_LEASES

    def lasts_s(self, lease_s: float) -> float:
        """For how long it lasts, at least."""
        return {Lasts.NO_TIME: 0.0, Lasts.SECONDS: lease_s, Lasts.BEYOND_LEASES: 3 * lease_s}[self.lasts]


_LONG, _OWN = Lasts.BEYOND_LEASES, Needs.OWN_SERVERS

_TABLE: Final = (
    Fault("device", "device process killed", processes.kill_device),
    Fault("live-consumer", "live consumer killed", processes.kill_live_consumer),
    Fault("bulk-consumer", "bulk consumer killed", processes.kill_bulk_consumer),
    Fault("worker", "supervisor killed, and so its whole worker", processes.kill_worker),
    Fault("collector", "collector killed, and so perhaps the reconciler", processes.kill_collector),
    Fault("producer", "producer killed", processes.kill_producer),
    Fault("gateway", "gateway killed", processes.kill_gateway),
    Fault("finalizer", "process that computes reports killed", processes.kill_finalizer),
    Fault("machine", "all processes of one machine killed", processes.kill_machine),
    Fault("pause", "bulk consumer stopped for one lease", processes.stop_consumer, Lasts.SECONDS),
    Fault("stop-consumer", "bulk consumer stopped for three leases", processes.stop_consumer, _LONG),
    Fault("stop-device", "device process stopped for three leases", processes.stop_device, _LONG),
    Fault("stop-collector", "collector stopped for three leases", processes.stop_collector, _LONG),
    Fault("stop-gateway", "gateway stopped for three leases", processes.stop_gateway, _LONG),
    Fault("stop-producer", "producer stopped for three leases", processes.stop_producer, _LONG, stops_feed=True),
    Fault("stop-finalizer", "process that computes reports stopped for three leases", processes.stop_finalizer, _LONG),
    Fault("stop-machine", "all processes of one machine stopped for three leases", processes.stop_machine, _LONG),
    Fault("poison-render", "an item at whose prompt the guard raises", work.poison("raise-in-render")),
    Fault("poison-read", "an item at whose answer the guard raises", work.poison("raise-in-read")),
    Fault("poison-device", "an item that kills the device process", work.poison("crash")),
    Fault("poison-consumer", "an item that kills its consumer", work.poison("kill-consumer")),
    Fault("fat-tail", "an item of 450 KB and one of a second amid short ones", work.fat_tail),
    Fault("slow-consumer", "bulk consumer at a tenth of its pace", work.slow_consumer, _LONG),
    Fault("held-rows", "a session stands still with rows of settling locked", work.held_rows, _LONG),
    Fault("old-snapshot", "a snapshot held while all rows are rewritten", work.old_snapshot, _LONG),
    Fault("bloat", "dead rows that nothing vacuums", work.bloat, _LONG),
    Fault("clock-back", "ledger's clock an hour back, broker emptied", work.clock_back, loses_queue=True),
    Fault("clock-forward", "ledger's clock an hour forward, chunks waiting", work.clock_forward, Lasts.SECONDS),
    Fault("cut-sessions", "every connection to both servers cut", servers.cut_sessions),
    Fault("flush", "broker emptied", servers.flush, loses_queue=True),
    Fault("valkey", "Valkey killed", servers.kill_valkey, needs=_OWN, loses_queue=True),
    Fault("postgres", "Postgres killed", servers.kill_postgres, needs=_OWN),
    Fault("restored-aof", "broker set back by a lease", servers.restore_aof, Lasts.SECONDS, _OWN, loses_queue=True),
    Fault(
        "promote",
        "promoted replica lacks the commits of a lease",
        servers.promote,
        Lasts.SECONDS,
        _OWN,
        loses_commits=True,
    ),
    Fault("read-only", "Postgres read-only for a lease", servers.read_only, Lasts.SECONDS, _OWN),
    Fault("slow-disk", "each commit 0.1 s slower", servers.slow_disk, _LONG, _OWN),
    Fault("full-disk", "disk of both servers full", servers.fill_disk, Lasts.SECONDS, Needs.OWN_DISK, loses_queue=True),
)
FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _TABLE}

Mix = dict[str, int]
"""Frequency of each fault by name, relative to the others."""


def everything(*, own_servers: bool, own_disk: bool) -> Mix:
    """Every fault that can be done, equally often."""
    able = {Needs.NOTHING: True, Needs.OWN_SERVERS: own_servers, Needs.OWN_DISK: own_disk}
    return {name: 1 for name, fault in FAULTS.items() if able[fault.needs]}


class Planned(NamedTuple):
    """A fault to come: `gap_s` after the fleet has recovered from the one before."""

    fault: Fault
    gap_s: float


def plan(seed: int, mix: Mix) -> Iterator[Planned]:
    """Faults without end. Each round holds every fault as often as the mix says, in an order of its own."""
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    while True:
        turn = [FAULTS[name] for name, weight in mix.items() for _ in range(weight)]
        chance.shuffle(turn)
        for fault in turn:
            yield Planned(fault, chance.uniform(0, _LONGEST_GAP_S))


def parse_mix(text: str) -> Mix:
    """A mix such as `worker=3,valkey=1`; a name alone counts once."""
    mix: Mix = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in FAULTS or not (weight or "1").isdecimal() or not int(weight or "1"):
            raise UsageError(f"--mix {part.strip()!r}: expected FAULT or FAULT=WEIGHT, of {', '.join(FAULTS)}")
        mix[name] = int(weight or "1")
    return mix
