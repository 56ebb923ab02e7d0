"""What client, socket and device process cost per item, and how close they come to a simulated device's ideal.

python -m tests.benchmarks.bench_device
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.messages import Lane
from tests.support.device import prompt, score_request
from worker.device.client import DeviceClient
from worker.device.spec import DeviceSpec
from worker.device.watch import DeviceProcess

CHUNK = [prompt(300, seed) for seed in range(64)]


@contextmanager
def device(**options: Any) -> Iterator[tuple[DeviceProcess, DeviceClient]]:
    with tempfile.TemporaryDirectory(prefix="dev-") as folder:
        paths = {"socket_path": Path(folder, "d.sock"), "heartbeat_path": Path(folder, "d.pulse")}
        process = DeviceProcess(DeviceSpec(guard="fake", engine="fake", **paths, **options))
        process.wait_ready(30)
        client = DeviceClient(paths["socket_path"])
        yield process, client
        client.close()
        process.stop(10)


def throughput(*, threads: int, chunks: int, batch_s: float = 0, item_s: float = 0) -> str:
    """Chunks of 64 x 300 ids from so many threads at once."""
    with device(fake_batch_s=batch_s, fake_item_s=item_s) as (process, client), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda no: client.run(score_request(CHUNK, iteration=no)), range(threads)))
        before = process.stats()
        started = time.perf_counter()
        # An iteration each: else equal prompts that wait together would run once.
        list(pool.map(lambda no: client.run(score_request(CHUNK, iteration=no)), range(chunks)))
        seconds = time.perf_counter() - started
        after = process.stats()
    batches, items = after.batches - before.batches, after.items - before.items
    ideal = batches * batch_s + items * item_s
    return f"{items / seconds:9,.0f} items/s, batches of {items / batches:.0f}, device busy {ideal / seconds:.1%}"


def live_latency(*, chunks: int, batch_s: float, item_s: float) -> str:
    """Single live items while four threads keep bulk chunks waiting."""
    took = []
    with device(fake_batch_s=batch_s, fake_item_s=item_s) as (_, client), ThreadPoolExecutor(4) as pool:
        begun = time.perf_counter()
        bulk = [pool.submit(client.run, score_request(CHUNK, iteration=no)) for no in range(chunks)]
        while not all(job.done() for job in bulk):
            started = time.perf_counter()
            client.run(score_request(CHUNK[:1], lane=Lane.LIVE, iteration=chunks))
            took.append((time.perf_counter() - started) * 1e3)
            time.sleep(0.02)
        rate = chunks * len(CHUNK) / (time.perf_counter() - begun)
    took.sort()
    half, most = took[len(took) // 2], took[int(len(took) * 0.95)]
    return f"bulk {rate:,.0f} items/s; live p50 {half:.0f} ms, p95 {most:.0f} ms over {len(took)} items"


def main() -> None:
    for threads in (1, 4, 8):
        print(f"no cost,         {threads} threads: {throughput(threads=threads, chunks=1500)}")
    for threads in (1, 4, 8):
        print(
            f"10 ms + 1 ms/it, {threads} threads: {throughput(threads=threads, chunks=100, batch_s=0.01, item_s=0.001)}"
        )
    print(f"live item (11 ms alone) under bulk load: {live_latency(chunks=100, batch_s=0.01, item_s=0.001)}")


if __name__ == "__main__":
    main()
