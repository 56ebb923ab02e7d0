"""One run of ten million items: it ends with its report, and no process's memory grows with it. Run by name only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.benchmarks.flat_memory import seen
from tests.benchmarks.kit.figures import Figure

_ITEMS: Final = 10_000_000
_QUICK_ITEMS: Final = 100_000
_KINDS: Final = ("producer", "collector", "finalizer", "bulk consumer")
_MIB: Final = 2**20
_PEAK_MIB: Final = 512


def run(*, quick: bool) -> Iterator[Figure]:
    """A run of the fake guard without cost, on a fleet that has judged nothing but its warm-up."""
    items = _QUICK_ITEMS if quick else _ITEMS
    found = seen(items, runs=1, kinds=_KINDS)
    times = found.times
    yield Figure("ten_million", f"settled of {items:,}", times.items, "items", at_least=items)
    yield Figure("ten_million", "from the start to the last verdict", times.settled_at - times.started_at, "s")
    yield Figure("ten_million", "end to end", times.items_per_s, "items/s")
    yield Figure("ten_million", "report, after the last verdict", times.ended_at - times.settled_at, "s")
    yield Figure("ten_million", "CPU of the fleet", found.core_ms_per_item, "core-ms/item")
    for kind in _KINDS:
        note = f"over the run: {found.curve[kind]}"
        yield Figure("ten_million", f"{kind}, peak", found.peaks[kind] / _MIB, "MiB", at_most=_PEAK_MIB, note=note)
