"""Whether a long run costs more than a short one: memory of producer and collector, CPU of the whole fleet per item."""

from __future__ import annotations

from collections.abc import Iterator
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
_POINTS: Final = 12


class _Seen(NamedTuple):
    times: RunTimes
    peaks: dict[str, int]
    curve: dict[str, str]
    core_ms_per_item: float


def run(*, quick: bool) -> Iterator[Figure]:
    """The same fleet with 10,000 items (some times over), and another with a hundred times as many."""
    long = _QUICK_LONG if quick else _LONG
    short_run, long_run = _seen(_SHORT, runs=_SHORT_RUNS), _seen(long, runs=1)
    for kind in ("producer", "collector"):
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


def _seen(items: int, *, runs: int) -> _Seen:
    """Peak resident memory (VmHWM) of fresh processes, metrics included, what it was on the way, and CPU an item."""
    cpu_s = 0.0
    with rig() as found, found.fleet():
        source = write_items(found.folder / "items.jsonl", items, _TEXT_BYTES)
        collector = find_process("collector").pid
        for _ in range(runs):
            with found.producer(source) as producer, Meter(every_s=0.2 if runs > 1 else 1).running() as meter:
                meter.look()
                times = producer.finish()
                peaks = {"producer": peak_rss(producer.pid), "collector": peak_rss(collector)}
            cpu_s += sum(meter.cpu_between(times.started_at, times.settled_at).values())
    step = max(1, len(meter.samples) // _POINTS)
    curve = {kind: " ".join(f"{sample.rss[kind] / _MIB:.0f}" for sample in meter.samples[::step]) for kind in peaks}
    return _Seen(times, peaks, curve, 1_000 * cpu_s / (runs * items))
