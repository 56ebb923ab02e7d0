"""What client, socket and device process cost per item, without broker and ledger, and what a live item waits there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from schemas.messages import Lane
from tests.benchmarks.kit.figures import Figure
from tests.support.device import prompt, score_request
from worker.device.client import DeviceClient
from worker.device.process import DeviceProcess
from worker.device.spec import DeviceSpec

_CHUNK: Final = [prompt(300, seed) for seed in range(64)]
_BATCH_S: Final = 0.010
_ITEM_S: Final = 0.001


def run(*, quick: bool) -> Iterator[Figure]:
    """Chunks of 64 × 300 ids from some threads at once; single live items while bulk chunks wait."""
    chunks = 300 if quick else 1_500
    for threads in (1, 8):
        rate, _ = _throughput(threads=threads, chunks=chunks)
        yield Figure("device_socket", f"no cost, {threads} threads", rate, "items/s")
    rate, busy = _throughput(threads=8, chunks=100, batch_s=_BATCH_S, item_s=_ITEM_S)
    yield Figure("device_socket", "10 ms + 1 ms an item, 8 threads", rate, "items/s", note=f"device busy {busy:.1%}")
    took_ms = _live_latencies(chunks=100)
    name = "live item of 11 ms beside bulk"
    yield Figure("device_socket", f"{name}, p50", took_ms[len(took_ms) // 2], "ms", note=f"{len(took_ms)} items")
    yield Figure("device_socket", f"{name}, p95", took_ms[int(len(took_ms) * 0.95)], "ms")


@contextmanager
def _device(**options: Any) -> Iterator[tuple[DeviceProcess, DeviceClient]]:
    with tempfile.TemporaryDirectory(prefix="dev-") as folder:
        paths = {"socket_path": Path(folder, "d.sock"), "heartbeat_path": Path(folder, "d.pulse")}
        process = DeviceProcess(DeviceSpec(guard="fake", engine="fake", **paths, **options))
        process.wait_ready(30)
        client = DeviceClient(paths["socket_path"])
        yield process, client
        client.close()
        process.stop(10)


def _throughput(*, threads: int, chunks: int, batch_s: float = 0, item_s: float = 0) -> tuple[float, float]:
    """Items per second, and the share of the time in which the device worked."""
    with _device(fake_batch_s=batch_s, fake_item_s=item_s) as (process, client), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda no: client.run(score_request(_CHUNK, iteration=no)), range(threads)))
        before = process.stats()
        started = time.perf_counter()
        # An iteration each: else equal prompts that wait together would run once.
        list(pool.map(lambda no: client.run(score_request(_CHUNK, iteration=no)), range(chunks)))
        seconds = time.perf_counter() - started
        after = process.stats()
    return (after.items - before.items) / seconds, (after.busy_s - before.busy_s) / seconds


def _live_latencies(*, chunks: int) -> list[float]:
    """Milliseconds, ascending, of single live items while four threads keep bulk chunks waiting."""
    took_ms = []
    with _device(fake_batch_s=_BATCH_S, fake_item_s=_ITEM_S) as (_, client), ThreadPoolExecutor(4) as pool:
        bulk = [pool.submit(client.run, score_request(_CHUNK, iteration=no)) for no in range(chunks)]
        while not all(job.done() for job in bulk):
            started = time.perf_counter()
            client.run(score_request(_CHUNK[:1], lane=Lane.LIVE, iteration=chunks))
            took_ms.append((time.perf_counter() - started) * 1e3)
            time.sleep(0.02)
    return sorted(took_ms)
