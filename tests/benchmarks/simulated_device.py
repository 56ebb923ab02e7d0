"""How much of a device's rate the fleet delivers: an engine that takes 10 ms a batch and 1 ms an item."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from typing import Final

from tests.benchmarks.kit.against_bare import BareRun, fleet_share, planned_batches
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.rig import rig, text_of, write_items
from worker.device.engines.fake import FakeEngine

_BATCH_MS: Final = 10
_ITEM_MS: Final = 1
_ITEMS: Final = 20_000
_QUICK_ITEMS: Final = 10_000
_TEXT_BYTES: Final = 300
_RUNS: Final = 2


def run(*, quick: bool) -> Iterator[Figure]:
    """20,000 items through a fleet whose device has a known rate, and through the bare engine, in turns."""
    items = _QUICK_ITEMS if quick else _ITEMS
    with rig() as found, found.fleet("--fake-batch-ms", str(_BATCH_MS), "--fake-item-ms", str(_ITEM_MS)):
        source = write_items(found.folder / "items.jsonl", items, _TEXT_BYTES)
        runs = 1 if quick else _RUNS
        yield from fleet_share("simulated_device", found, source, lambda: _bare(items), runs=runs)


def _bare(items: int) -> BareRun:
    engine = FakeEngine(batch_s=_BATCH_MS / 1_000, item_s=_ITEM_MS / 1_000)
    prompts = [array("i", [0, *text_of(number, _TEXT_BYTES).encode()]) for number in range(items)]
    info = engine.info
    batches = planned_batches(prompts, max_batch_tokens=info.max_batch_tokens, max_batch_items=info.max_batch_items)
    started = time.monotonic()
    for batch in batches:
        engine.score(batch, ())
    return BareRun(items, len(batches), time.monotonic() - started)
