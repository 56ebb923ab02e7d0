"""How much of a device's rate the fleet delivers: an engine that takes 10 ms a batch and 1 ms an item.

The fleet's rate, end to end, is divided by the bare engine's on the same batches: the device process counts batches and
items (its pulse), and the bare engine is called in a loop, nothing around it, with as many batches of the same mean
size. What the fleet loses is the time in which its device had nothing to do. That the batches are as large as
they should be is a question of its own: `batch fill` compares their mean with what the planner forms when
everything waits.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from typing import Final

from schemas.messages import Lane
from tests.benchmarks.figures import Figure, median_figure
from tests.benchmarks.processes import find_process
from tests.benchmarks.rig import rig, text_of, write_items
from worker.device.batching import Entry, Waiting
from worker.device.engines.fake import FakeEngine
from worker.device.heartbeat import Pulse, read_pulse
from worker.device.spec import DeviceSpec

_BATCH_MS: Final = 10
_ITEM_MS: Final = 1
_ITEMS: Final = 10_000
_TEXT_BYTES: Final = 300
_RUNS: Final = 3
_SHARE: Final = 0.95


def run(*, quick: bool) -> Iterator[Figure]:
    """10,000 items through a fleet whose device has a known rate."""
    shares, rates, sizes, busy = [], [], [], []
    with rig() as found, found.fleet("--fake-batch-ms", str(_BATCH_MS), "--fake-item-ms", str(_ITEM_MS)):
        source = write_items(found.folder / "items.jsonl", _ITEMS, _TEXT_BYTES)
        pulse_path = _device_spec().heartbeat_path
        for _ in range(1 if quick else _RUNS):
            before = read_pulse(pulse_path)
            times = found.judge(source)
            ran = _since(before, read_pulse(pulse_path))
            rates.append(times.items_per_s)
            sizes.append(ran.items / ran.batches)
            busy.append(ran.busy_s / (times.settled_at - times.started_at))
            shares.append(times.items_per_s / _bare_rate(batches=ran.batches, items=ran.items))
    name = "simulated_device"
    yield median_figure(name, "fleet / bare engine on the same batches", shares, "", at_least=_SHARE)
    yield median_figure(name, "end to end", rates, "items/s")
    yield median_figure(name, "share of the run in which the device worked", busy, "")
    yield median_figure(name, "batch size", sizes, "items", note=f"{_largest_mean():.1f} were everything waiting")


def _device_spec() -> DeviceSpec:
    return DeviceSpec.model_validate_json(find_process("device process").cmdline()[-1])


def _since(before: Pulse, after: Pulse) -> Pulse:
    return Pulse(
        batches=after.batches - before.batches,
        items=after.items - before.items,
        busy_s=after.busy_s - before.busy_s,
    )


def _engine() -> FakeEngine:
    return FakeEngine(batch_s=_BATCH_MS / 1_000, item_s=_ITEM_MS / 1_000)


def _bare_rate(*, batches: int, items: int) -> float:
    """Items per second of the engine alone, over so many batches of the same mean size."""
    engine, prompt = _engine(), array("i", text_of(0, _TEXT_BYTES).encode())
    started = time.monotonic()
    for number in range(batches):
        size = items * (number + 1) // batches - items * number // batches
        engine.score([prompt] * size, ())
    return items / (time.monotonic() - started)


def _largest_mean() -> float:
    """Mean batch size of the planner when every item waits."""
    info, waiting = _engine().info, Waiting[None]()
    for ticket in range(1_000):
        waiting.add(Entry(ticket, Lane.BULK, _TEXT_BYTES + 1, None, ticket, [None]))
    sizes = []
    while batch := waiting.take(max_tokens=info.max_batch_tokens, max_items=info.max_batch_items):
        sizes.append(len(batch))
    return max(sizes)
