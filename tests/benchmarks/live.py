"""Latency of one live item, alone and while a bulk run drains, on an engine of 10 ms a batch and 2 ms an item."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from producer.client import LiveClient
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.rig import GUARD, rig, text_of, write_items

_PER_S: Final = 10
_SECONDS: Final = 20
_QUICK_SECONDS: Final = 10
_TEXT_BYTES: Final = 300
_BULK_ITEMS_PER_S: Final = 500


def run(*, quick: bool) -> Iterator[Figure]:
    """Ten items a second through `LiveClient.judge`, whether or not the one before has come back."""
    seconds = _QUICK_SECONDS if quick else _SECONDS
    with rig() as found, found.fleet("--fake-batch-ms", "10", "--fake-item-ms", "2"):
        client = LiveClient(found.services, guard=GUARD, tenant="benchmark")
        client.judge(text_of(0, _TEXT_BYTES))
        alone = _latencies(client, seconds)
        source = write_items(found.folder / "bulk.jsonl", _BULK_ITEMS_PER_S * (seconds + 5), _TEXT_BYTES)
        with found.producer(source) as producer:
            producer.start()
            time.sleep(1)
            beside = _latencies(client, seconds)
            times = producer.finish(started=True)
    for name, latencies in (("alone", alone), ("beside a bulk run", beside)):
        p50, p99 = statistics.median(latencies), statistics.quantiles(latencies, n=100)[98]
        yield Figure("live", f"p50 {name}", 1_000 * p50, "ms")
        yield Figure("live", f"p99 {name}", 1_000 * p99, "ms", note=f"{len(latencies)} items at {_PER_S}/s")
    yield Figure("live", "the bulk run beside live", times.items_per_s, "items/s")


def _latencies(client: LiveClient, seconds: int) -> list[float]:
    """Open loop: each item is due at its time; waiting for a free thread counts as well."""

    def judge(due: float, number: int) -> float:
        client.judge(text_of(number, _TEXT_BYTES))
        return time.monotonic() - due

    start = time.monotonic() + 0.1
    with ThreadPoolExecutor(max_workers=16) as pool:
        futures = []
        for number in range(_PER_S * seconds):
            due = start + number / _PER_S
            time.sleep(max(0.0, due - time.monotonic()))
            futures.append(pool.submit(judge, due, number))
        return [future.result() for future in futures]
