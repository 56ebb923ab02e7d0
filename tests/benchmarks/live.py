"""Latency of live items at 100 a second, alone and while a bulk run of 100,000 items drains on the same device.

The device is simulated: 10 ms a batch and 2 ms an item. One client process (this one) calls `LiveClient.judge` from
threads, as a service would. Arrivals are open-loop and Poisson: an item is due at its moment whether or not those
before it have come back, and its latency counts from that moment, so that a stall shows in everything that was due
meanwhile (no coordinated omission); waiting for a free thread counts as well.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from producer.intake.live import LiveClient
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.rig import GUARD, Rig, rig, text_of, write_items

_PER_S: Final = 100
_SECONDS: Final = 30
_QUICK_SECONDS: Final = 10
_WARM_UP_S: Final = 3
_THREADS: Final = 64
_TEXT_BYTES: Final = 300
_BULK_ITEMS: Final = 100_000
_ALONE_P50_MS: Final = 35
_ALONE_P99_MS: Final = 80
_BESIDE_BULK_P99_MS: Final = 150


def run(*, quick: bool) -> Iterator[Figure]:
    """A hundred items a second through `LiveClient.judge`, then the same beside a bulk run."""
    with rig() as found, found.fleet("--fake-batch-ms", "10", "--fake-item-ms", "2"):
        client = LiveClient(found.services, guard=GUARD, tenant="benchmark", cache=False)
        try:
            yield from _measure(found, client, _QUICK_SECONDS if quick else _SECONDS)
        finally:
            client.close()


def _measure(found: Rig, client: LiveClient, seconds: int) -> Iterator[Figure]:
    latencies_ms(client, _WARM_UP_S, seed=0)
    yield from _figures("alone", latencies_ms(client, seconds, seed=1), _ALONE_P50_MS, _ALONE_P99_MS)
    source = write_items(found.folder / "bulk.jsonl", _BULK_ITEMS, _TEXT_BYTES)
    with found.producer(source) as producer:
        producer.start()
        time.sleep(_WARM_UP_S)
        before = _bulk_settled(found)
        took_ms = latencies_ms(client, seconds, seed=2)
        drained = _bulk_settled(found) - before
        producer.abandon()
    yield from _figures("beside bulk", took_ms, None, _BESIDE_BULK_P99_MS)
    yield Figure("live", "the bulk run beside it", drained / seconds, "items/s")


def _figures(name: str, took_ms: list[float], p50_bar: float | None, p99_bar: float) -> Iterator[Figure]:
    p50, p99 = statistics.median(took_ms), statistics.quantiles(took_ms, n=100)[98]
    yield Figure("live", f"p50 {name}", p50, "ms", at_most=p50_bar, note=f"{len(took_ms):,} items, {_PER_S}/s Poisson")
    yield Figure("live", f"p99 {name}", p99, "ms", at_most=p99_bar, note=f"worst {max(took_ms):.0f} ms")


def latencies_ms(client: LiveClient, seconds: int, *, seed: int) -> list[float]:
    """One latency per item, from the moment it was due."""

    def judge(due: float, number: int) -> float:
        client.judge(text_of(number, _TEXT_BYTES))
        return 1_000 * (time.monotonic() - due)

    rng = random.Random(seed)
    due = time.monotonic() + 0.1
    end = due + seconds
    futures = []
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            futures.append(pool.submit(judge, due, len(futures)))
            due += rng.expovariate(_PER_S)
        return [future.result() for future in futures]


def _bulk_settled(found: Rig) -> int:
    """Items settled of the bulk run, which is the newest."""
    return int(found.scalar("SELECT settled FROM runs WHERE lane = 'bulk' ORDER BY created_at DESC LIMIT 1"))
