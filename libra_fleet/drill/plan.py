"""Which faults come, in which order, after which pauses: decided by the seed alone. Touches nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from infra.errors import UsageError

_LONGEST_GAP_S: Final = 0.5
_PAUSE_S: Final = (0.5, 4.0)


class Fault(StrEnum):
    """What a drill does to a fleet."""

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
        """Whether it kills a server, which a drill does to its own ones only."""
        return self in (Fault.VALKEY, Fault.POSTGRES)


Mix = dict[Fault, int]
"""How often each fault comes, relative to the others."""

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
    """A mix such as `worker=3,valkey=1`; a name alone counts once.

    Raises:
        UsageError: an unknown fault, or a weight that is no positive number.
    """
    mix: Mix = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in set(Fault) or not (weight or "1").isdecimal() or not int(weight or "1"):
            raise UsageError(f"--mix {part.strip()!r}: expected FAULT or FAULT=WEIGHT, of {', '.join(Fault)}")
        mix[Fault(name)] = int(weight or "1")
    return mix
