"""The fleet against the bare engine on the same items: what everything around an engine costs it.

Both judge the same items with one engine's settings on the same device, in turns: each run of the fleet stands between
two of the bare engine and is held against the mean of these, so that a machine that becomes slower or faster does so
for both. The bare engine is called in a loop with batches planned over everything, nothing around it; the fleet is
measured end to end, from the start of the submission to the last verdict in the ledger, its ramp-up and its last batch
included.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from schemas.messages import Lane
from tests.benchmarks.kit.figures import Figure, median_figure
from tests.benchmarks.kit.processes import find_process
from tests.benchmarks.kit.rig import GUARD, Rig
from worker.device.batching import Entry, Waiting
from worker.device.heartbeat import read_pulse
from worker.device.spec import DeviceSpec

AT_LEAST: Final = 0.97


class BareRun(NamedTuple):
    """What the bare engine did: how many items, in how many batches, in how many seconds."""

    items: int
    batches: int
    seconds: float


def fleet_share(
    bench: str,
    found: Rig,
    source: Path,
    bare: Callable[[], BareRun],
    *,
    guard: str = GUARD,
    runs: int = 3,
    at_least: float = AT_LEAST,
) -> Iterator[Figure]:
    """Figures: the fleet's share of the bare engine's rate with its bar, then what it is made of.

    Args:
        bench: name of the benchmark.
        found: a rig whose warm fleet of this guard runs on one device (call within `found.fleet(...)`).
        source: the items, as a file that `libra run start` reads.
        bare: runs the engine alone over the prompts of the same items and says what that took.
        guard: the guard's name.
        runs: of the fleet; the bare engine has one more.
        at_least: the bar.
    """
    shares, fleet_rates, busy, fills = [], [], [], []
    alone = bare()
    bare_rates = [alone.items / alone.seconds]
    spec = DeviceSpec.model_validate_json(find_process("device process").cmdline()[-1])
    for _ in range(runs):
        before = read_pulse(spec.heartbeat_path)
        times = found.judge(source, guard=guard)
        after = read_pulse(spec.heartbeat_path)
        seconds = times.settled_at - times.started_at
        fleet_rates.append(times.items_per_s)
        alone = bare()
        bare_rates.append(alone.items / alone.seconds)
        shares.append(2 * fleet_rates[-1] / (bare_rates[-2] + bare_rates[-1]))
        busy.append((after.busy_s - before.busy_s) / seconds)
        fills.append((after.items - before.items) / (after.batches - before.batches))
    yield median_figure(bench, "fleet / bare engine, same items", shares, "", at_least=at_least)
    yield median_figure(bench, "fleet", fleet_rates, "items/s")
    yield median_figure(bench, "bare engine", bare_rates, "items/s")
    yield median_figure(bench, "share of the run in which the device worked", busy, "", at_least=at_least)
    note = f"bare engine: {alone.items / alone.batches:.1f}"
    yield median_figure(bench, "batch size of the fleet", fills, "items", note=note)


def planned_batches(
    prompts: Sequence[array[int]],
    *,
    max_batch_tokens: int,
    max_batch_items: int,
    packs: bool = False,
    prefix_tokens: int = 0,
) -> list[list[array[int]]]:
    """The batches that the planner forms of prompts that all wait at once: what the bare engine runs."""
    waiting: Waiting[array[int]] = Waiting()
    for ticket, prompt in enumerate(sorted(prompts, key=len)):
        waiting.add(Entry(ticket, Lane.BULK, max(1, len(prompt) - prefix_tokens), None, ticket, [prompt], packs))
    batches = []
    while batch := waiting.take(max_tokens=max_batch_tokens, max_items=max_batch_items):
        batches.append([entry.items[0] for entry in batch])
    return batches
