"""A whole fleet by its defaults: a bulk run, live items alone and beside it, and a device process that is killed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import psutil

from producer.intake.live import LiveClient
from tests.benchmarks.kit.half_billion import GUARD
from tests.benchmarks.kit.processes import find_process
from tests.benchmarks.kit.rig import Rig, rig, write_items
from tests.benchmarks.live import latencies_ms
from tests.gpu.ground import Ground, items


def run(ground: Ground) -> None:
    count = ground.some(16_000, 64)
    devices = "cpu" if ground.dry else "all"
    with (
        rig() as found,
        found.fleet(
            "--devices",
            devices,
            "--checkpoint",
            str(ground.models / "half"),
            guard=GUARD,
            warm_up_items=ground.some(512, 16),
        ),
    ):
        source = found.folder / "items.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for item in items(count):
                row = {"id": f"q{item.seq}", "question": item.question, "response": item.response}
                file.write(json.dumps({**row, "label": "安全", "source": "gpu"}, ensure_ascii=False) + "\n")
        times = found.judge(source, guard=GUARD)
        ground.say(bulk="by default", items=times.items, items_per_s=round(times.items_per_s), devices=_devices(found))
        _live(ground, found)
        _killed(ground, found, source, count)


def _devices(found: Rig) -> list[dict[str, object]]:
    names = ("device", "busy_share", "items_per_s", "tokens_per_s", "padding_share", "budget_tokens")
    announced = found.services.coordination.presence.announced()
    return [{name: getattr(one, name) for name in names} for one in announced if one.kind == "worker"]


def _live(ground: Ground, found: Rig) -> None:
    seconds = ground.some(8, 1)
    client = LiveClient(found.services, guard=GUARD, tenant="gpu-check", cache=False)
    try:
        latencies_ms(client, ground.some(2, 1), seed=0)
        _say(ground, "alone, 100 a second", latencies_ms(client, seconds, seed=1))
        source = write_items(found.folder / "bulk.jsonl", ground.some(20_000, 64), 300)
        with found.producer(source, guard=GUARD) as producer:
            producer.start()
            time.sleep(ground.some(2, 0))
            took = latencies_ms(client, seconds, seed=2)
            producer.abandon()
        _say(ground, "beside bulk", took)
    finally:
        client.close()


def _say(ground: Ground, where: str, took_ms: list[float]) -> None:
    p99 = statistics.quantiles(took_ms, n=100)[98]
    ground.say(live=where, items=len(took_ms), p50_ms=round(statistics.median(took_ms), 1), p99_ms=round(p99, 1))


def _killed(ground: Ground, found: Rig, source: object, count: int) -> None:
    with found.producer(source, guard=GUARD) as producer:  # type: ignore[arg-type]
        producer.start()
        time.sleep(2)
        killed = find_process("device process")
        killed.kill()
        psutil.wait_procs([killed], timeout=5)
        times = producer.finish(started=True)
    command = [sys.executable, "-m", "libra_fleet.cli", "run", "verify", times.run_id]
    verified = subprocess.run(
        command, env=found.services.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    ground.check(
        "a killed device process costs no item",
        times.items == count and verified.returncode == 0,
        items=times.items,
        verified=verified.stdout[-200:] + verified.stderr[-200:],
    )
