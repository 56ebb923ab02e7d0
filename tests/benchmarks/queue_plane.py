"""The whole way of an item without a model: producer, Valkey, worker, collector, Postgres; rate and CPU cost."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.benchmarks.kit.figures import Figure, median_figure
from tests.benchmarks.kit.processes import Meter
from tests.benchmarks.kit.rig import RunTimes, rig, write_items

_ITEMS: Final = 20_000
_TEXT_BYTES: Final = 800
_RUNS: Final = 5
_QUICK_RUNS: Final = 3
_ITEMS_PER_S: Final = 4_000
_CORE_MS_PER_ITEM: Final = 0.4
_FINALIZE_S: Final = 5


def run(*, quick: bool) -> Iterator[Figure]:
    """20,000 items of 800 bytes through every process of a fleet, several times over."""
    times: list[RunTimes] = []
    costs: list[Counter[str]] = []
    with rig() as found, found.fleet():
        source = write_items(found.folder / "items.jsonl", _ITEMS, _TEXT_BYTES)
        for _ in range(_QUICK_RUNS if quick else _RUNS):
            with found.producer(source) as producer, Meter().running() as meter:
                meter.look()
                run_times = producer.finish()
            times.append(run_times)
            costs.append(meter.cpu_between(run_times.started_at, run_times.settled_at))
    name = "queue_plane"
    rates = [each.items_per_s for each in times]
    yield median_figure(name, "end to end", rates, "items/s", at_least=_ITEMS_PER_S)
    totals = [1_000 * sum(cost.values()) / _ITEMS for cost in costs]
    yield median_figure(name, "CPU of the fleet", totals, "core-ms/item", at_most=_CORE_MS_PER_ITEM)
    for kind in sorted(set().union(*costs)):
        shares = [1_000 * cost[kind] / _ITEMS for cost in costs]
        if statistics.median(shares) >= 0.0005:
            yield median_figure(name, f"CPU: {kind}", shares, "core-ms/item")
    yield median_figure(name, "submission", [_ITEMS / each.submitted_s for each in times], "items/s")
    finalizing = [each.ended_at - each.settled_at for each in times]
    yield median_figure(name, "metrics after the last item", finalizing, "s", at_most=_FINALIZE_S)
    validating = [1_000 * each.validate_cpu_s / _ITEMS for each in times]
    yield median_figure(
        name, "validation before the run", validating, "core-ms/item", note="not in the fleet's CPU: before submission"
    )
