"""From a measured rate of one device to a number of devices. Pure arithmetic; invents no rate.

Live waiting times by Erlang's C formula (M/M/c: A. K. Erlang, 1917): Poisson arrivals, c devices, each judging
`per_device` items a second. Batches make a real fleet faster under load than that, so the answer errs to the safe side.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from libra_fleet.cli.capacity.figures import BULK_BUSY, LIVE_BUSY, LIVE_P99_S

_LATE_SHARE: Final = 0.01
_MOST_DEVICES: Final = 100_000


class LivePlan(NamedTuple):
    """Devices for live traffic, how busy they are, and the latency to expect at the 99th percentile, in seconds."""

    devices: int
    busy: float
    p99_s: float


def bulk_devices(rate: float, per_device: float) -> int:
    """Devices that keep up with `rate` items a second that may wait."""
    return math.ceil(rate / (per_device * BULK_BUSY))


def live_plan(rate: float, per_device: float, p99_s: float | None = None) -> LivePlan | None:
    """The fewest devices no busier than was measured, with waits that leave `p99_s`; None: that is out of reach."""
    if p99_s is not None and p99_s < LIVE_P99_S:
        return None
    devices = max(1, math.ceil(rate / (per_device * LIVE_BUSY)))
    while devices < _MOST_DEVICES:
        expected_s = LIVE_P99_S + late_wait_s(rate, per_device, devices)
        if p99_s is None or expected_s <= p99_s:
            return LivePlan(devices, rate / (per_device * devices), expected_s)
        devices += 1
    return None


def late_wait_s(rate: float, per_device: float, devices: int) -> float:
    """Seconds that one item in a hundred waits for a device at least."""
    spare = devices * per_device - rate
    waits = erlang_c(rate / per_device, devices)
    return max(0.0, math.log(waits / _LATE_SHARE) / spare) if waits > 0 else 0.0


def erlang_c(offered: float, devices: int) -> float:
    """The share of items that find every device busy; `offered` is the load in devices, below `devices`."""
    blocked = 1.0  # Erlang's B, by its recursion over the number of devices
    for number in range(1, devices + 1):
        blocked = offered * blocked / (number + offered * blocked)
    busy = offered / devices
    return blocked / (1 - busy + busy * blocked)
