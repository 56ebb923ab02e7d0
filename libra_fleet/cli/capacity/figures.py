"""What the fleet around the devices costs, as measured: the figures of docs/performance.md, each with its words there.

A test holds every figure equal to that page. Whoever measures anew changes both.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class PartCost(NamedTuple):
    """CPU that one part of the fleet takes for an item, in core-milliseconds."""

    part: str
    core_ms_per_item: float


class Path(NamedTuple):
    """One way of items through the fleet: what each part costs, and the highest rate that was really run.

    `quotes` are the words of docs/performance.md that hold the figures, `machine` is where they were taken.
    """

    name: str
    parts: tuple[PartCost, ...]
    highest_per_s: float
    quotes: tuple[str, ...]

    def core_ms(self, part: str) -> float:
        """A part's cost for an item."""
        return next(cost.core_ms_per_item for cost in self.parts if cost.part == part)


MACHINE: Final = "2 cores of an AMD EPYC, everything on them"

BULK: Final = Path(
    "bulk",
    (
        PartCost("workers' consumers", 0.048),
        PartCost("producer", 0.033),
        PartCost("collector", 0.033),
        PartCost("Postgres", 0.020),
        PartCost("device processes", 0.011),
        PartCost("Redis", 0.009),
    ),
    10_280,
    (
        "bulk consumer, producer, collector, Postgres, device process, Valkey",
        "0.048, 0.033, 0.033, 0.020, 0.011, 0.009",
        "10,280 items/s",
    ),
)

LIVE: Final = Path(
    "live over the gateway",
    (
        PartCost("gateway", 1.3),
        PartCost("collector", 0.6),
        PartCost("Postgres", 0.5),
        PartCost("workers' consumers", 0.5),
        PartCost("Redis and device processes", 0.2),
    ),
    204.5,
    (
        "of which the gateway 1.3, the\ncollector 0.6, Postgres 0.5, the live consumer 0.5,",
        "Valkey and the device process 0.2",
        "204.5 requests/s for 60 s",
    ),
)

COLLECTOR_PER_S: Final = 28_326.0
COLLECTOR_QUOTE: Final = "28,326 verdicts/s"
"""The most that one collector settled in a second, in chunks of 64."""

LIVE_P99_S: Final = 0.0656
LIVE_BUSY: Final = 0.8
LIVE_QUOTES: Final = ("33.7 and 65.6 ms", "keep about 80 % busy")
"""Latency of a live item at the 99th percentile, on a simulated device that was so busy."""

BULK_BUSY: Final = 0.977
BULK_BUSY_QUOTE: Final = "share of the run in which the device worked | 0.977"
"""How busy a bulk run keeps its device."""
