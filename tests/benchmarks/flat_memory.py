"""Whether a long run costs more than a short one: memory by process, CPU of the whole fleet per item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.processes import Meter, find_process, peak_rss
from tests.benchmarks.kit.rig import RunTimes, rig, write_items

_SHORT: Final = 10_000
_LONG: Final = 1_000_000
_QUICK_LONG: Final = 200_000
_SHORT_RUNS: Final = 5
_TEXT_BYTES: Final = 200
_MORE_MIB: Final = 64
_MORE_CPU: Final = 1.1
_MIB: Final = 2**20
_KINDS: Final = ("producer", "collector", "finalizer")
_POINTS: Final = 12


class Seen(NamedTuple):
    """A run with the memory of its processes by kind (bytes), on the way and at its peak."""

    times: RunTimes
    peaks: dict[str, int]
    curve: dict[str, str]
    core_ms_per_item: float


def run(*, quick: bool) -> Iterator[Figure]:
    """The same fleet with 10,000 items (some times over), and another with a hundred times as many."""
    long = _QUICK_LONG if quick else _LONG
    short_run, long_run = seen(_SHORT, runs=_SHORT_RUNS), seen(long, runs=1)
    for kind in _KINDS:
        low, high = short_run.peaks[kind] / _MIB, long_run.peaks[kind] / _MIB
        yield Figure("flat_memory", f"{kind}, peak at {_SHORT:,}", low, "MiB")
        note = f"over the run: {long_run.curve[kind]}"
        yield Figure("flat_memory", f"{kind}, peak at {long:,}", high, "MiB", at_most=low + _MORE_MIB, note=note)
    low, high = short_run.core_ms_per_item, long_run.core_ms_per_item
    yield Figure("flat_memory", f"CPU of the fleet at {_SHORT:,}", low, "core-ms/item", note=f"{_SHORT_RUNS} runs")
    yield Figure("flat_memory", f"CPU of the fleet at {long:,}", high, "core-ms/item", at_most=low * _MORE_CPU)
    times = long_run.times
    yield Figure("flat_memory", f"end to end, {long:,} items", times.items_per_s, "items/s")
    yield Figure("flat_memory", f"metrics of {long:,} items", times.ended_at - times.settled_at, "s")


def seen(items: int, *, runs: int, kinds: Sequence[str] = _KINDS) -> Seen:
    """Peak resident memory of fresh processes, metrics included, what it was on the way, and CPU an item."""
    cpu_s = 0.0
    with rig() as found, found.fleet():
        source = write_items(found.folder / "items.jsonl", items, _TEXT_BYTES)
        for _ in range(runs):
            with found.producer(source) as producer, Meter(every_s=0.2 if runs > 1 else 1).running() as meter:
                meter.look()
                times = producer.finish()
                pids = {kind: producer.pid if kind == "producer" else find_process(kind).pid for kind in kinds}
                peaks = {kind: peak_rss(pid) for kind, pid in pids.items()}
            cpu_s += sum(meter.cpu_between(times.started_at, times.settled_at).values())
    step = max(1, len(meter.samples) // _POINTS)
    curve = {kind: " ".join(f"{sample.rss[kind] / _MIB:.0f}" for sample in meter.samples[::step]) for kind in kinds}
    return Seen(times, peaks, curve, 1_000 * cpu_s / (runs * items))
