"""The fleet before GPUs that are not there: real items, Qwen's vocabulary, an engine that sleeps as a cost model says.

A batch of n uncached tokens takes a + b·n: a for its launches, on the engine's thread, b for each token, on the device.
As on CUDA the next batch may be launched while one is computed. The figures of the models are estimates for an H200:
none of them was measured on one. What is measured here is everything around the engine, by its defaults: queue,
consumers, rendering, batcher, broker, collector, ledger.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from producer.intake.live import LiveClient
from schemas.guards import Mode
from schemas.messages import ChunkItem, Lane
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.half_billion import GUARD, guard_of, rendered, stratified_items
from tests.benchmarks.kit.processes import Meter, find_process
from tests.benchmarks.kit.rig import Rig, rig
from tests.support.checkpoints import qwen_tokenizer_json, write_checkpoint
from worker.device.client import DeviceClient
from worker.device.heartbeat import read_pulse
from worker.device.protocol import DeviceRequest, Kind
from worker.device.spec import DeviceSpec
from worker.guards.libra import LibraGuard

_LIVE_PER_S: Final = 2
_BULK_SHARE: Final = 0.90
_LIVE_FACTOR: Final = 3.0
_HOST_CORE_MS: Final = 0.45
_LIVE_TOKENS: Final = 156
_MOST_ITEMS: Final = 160_000
_RAMP_S: Final = 4.0
"""From the start of a submission until its first chunks are at the device, and then some."""


class Model(NamedTuple):
    """A model on an H200 by estimate: ms of a launch, µs of a token, tokens of a batch; the bar of its busy share."""

    name: str
    launch_ms: float
    token_us: float
    budget: int
    busy: float

    @property
    def own_ms(self) -> float:
        """What a live item takes that has the device for itself."""
        return self.launch_ms + _LIVE_TOKENS * self.token_us / 1e3


MODELS: Final = (
    Model("0.5B", 16, 2.7, 32_768, 0.92),
    Model("7B", 22, 25.7, 8_192, 0.98),
    Model("14B", 34, 52.0, 4_096, 0.98),
)


def run(*, quick: bool) -> Iterator[Figure]:
    """Per model: a bulk run by itself, then the same beside two live items a second."""
    seconds = 12.0 if quick else 30.0
    for model in MODELS:
        with rig() as found:
            folder = found.folder / "checkpoint"
            write_checkpoint(folder, qwen_tokenizer_json(), context_tokens=32_768)
            options = (
                *("--checkpoint", str(folder), "--fake-overlaps", "--max-batch-tokens", str(model.budget)),
                *("--max-batch-items", "1024"),
                *("--fake-batch-ms", str(model.launch_ms), "--fake-token-us", str(model.token_us)),
            )
            with found.fleet(*options, guard=GUARD, warm_up_items=512):
                yield from _measure(found, model, guard_of(folder), seconds)


def _measure(found: Rig, model: Model, guard: LibraGuard, seconds: float) -> Iterator[Figure]:
    def figure(name: str, value: float, unit: str, **options: Any) -> Figure:
        return Figure("simulated_gpu", f"{model.name}, {name}", value, unit, **options)

    spec = DeviceSpec.model_validate_json(find_process("device process").cmdline()[-1])
    enough = int(3 * (seconds + _RAMP_S) * 1e6 / model.token_us / _LIVE_TOKENS)
    source = _write(found.folder / "bulk.jsonl", min(enough, _MOST_ITEMS))
    meter = Meter(every_s=0.5)
    with meter.running(), found.producer(source, guard=GUARD) as producer:
        producer.start()
        time.sleep(_RAMP_S)
        alone = _watch(spec.heartbeat_path, meter, seconds)
        with _live(_of_device(spec, guard)) as took_ms:
            beside = _watch(spec.heartbeat_path, meter, seconds)
        client = LiveClient(found.services, guard=GUARD, tenant="benchmark", cache=False)
        try:
            with _live(lambda number: client.judge(_text(number))) as whole_ms:
                time.sleep(seconds / 2)
        finally:
            client.close()
        producer.abandon()
    ideal = f"ideal {1e6 / model.token_us:,.0f} tokens/s"
    yield figure("device busy, bulk alone", alone.busy, "", at_least=model.busy)
    yield figure("bulk alone", alone.items_per_s, "items/s", note=ideal)
    yield figure("bulk alone, of the ideal", alone.tokens_per_s * model.token_us / 1e6, "")
    kept = beside.tokens_per_s / alone.tokens_per_s
    yield figure("bulk beside 2 live items a second, of alone", kept, "", at_least=_BULK_SHARE)
    took_ms = took_ms[1:]  # the first one came upon batches that were not cut yet
    p99 = statistics.quantiles(took_ms, n=100)[98]
    note = f"{len(took_ms)} items, median {statistics.median(took_ms):.0f} ms; alone {model.own_ms:.0f} ms"
    share = p99 / model.own_ms
    yield figure("live p99 at the device's socket, of its own batch", share, "", at_most=_LIVE_FACTOR, note=note)
    yield figure("live median through broker and ledger", statistics.median(whole_ms), "ms")
    bar = {"at_most": _HOST_CORE_MS} if model.name == "0.5B" else {}
    yield figure("host CPU from queue to verdict", alone.core_ms, "core-ms/item", **bar)


class _Watched(NamedTuple):
    busy: float
    items_per_s: float
    tokens_per_s: float
    core_ms: float


def _watch(pulse_path: Path, meter: Meter, seconds: float) -> _Watched:
    """What the device did in the next seconds, and what all processes but the producer took for it."""
    began, before = time.time(), read_pulse(pulse_path)
    time.sleep(seconds)
    ended, after = time.time(), read_pulse(pulse_path)
    meter.look()
    passed_s = ended - began
    cpu_s = meter.cpu_between(began, ended)
    host_s = sum(used for kind, used in cpu_s.items() if kind not in ("producer", "ended"))

    def gained(name: str) -> float:
        return float(getattr(after, name) - getattr(before, name))

    return _Watched(
        gained("busy_s") / passed_s,
        gained("items") / passed_s,
        gained("tokens") / passed_s,
        1e3 * host_s / max(1.0, gained("items")),
    )


@contextmanager
def _live(ask: Callable[[int], object]) -> Iterator[list[float]]:
    """Two live items a second, at even distances, while the context lasts; yields what each took, in ms."""
    took_ms: list[float] = []
    stop = threading.Event()

    def keep_asking() -> None:
        number = 0
        while not stop.is_set():
            began = time.monotonic()
            ask(number)
            took_ms.append(1e3 * (time.monotonic() - began))
            number += 1
            stop.wait(max(0.0, 1 / _LIVE_PER_S - (time.monotonic() - began)))

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        yield took_ms
    finally:
        stop.set()
        thread.join()


def _of_device(spec: DeviceSpec, guard: LibraGuard) -> Callable[[int], object]:
    """Asks the device process itself, as its live consumer does."""
    client = DeviceClient(spec.socket_path)

    def ask(number: int) -> object:
        prompts = rendered(guard, [ChunkItem(seq=number, question="", response=_text(number))], Mode.SCORE)
        return client.run(DeviceRequest(Kind.SCORE, Lane.LIVE, prompts, labels=guard.label_ids))

    return ask


def _text(number: int) -> str:
    return f"第 {number} 个问题：今天晚饭吃什么，明天要走哪条路？" * 6


def _write(path: Path, count: int) -> Path:
    """Real items, all different."""
    with path.open("w", encoding="utf-8") as file:
        for number, item in enumerate(stratified_items(count)):
            row = {"id": f"q{number}", "question": item.question, "response": item.response, "label": "安全"}
            file.write(json.dumps({**row, "source": "Real Data"}, ensure_ascii=False) + "\n")
    return path
