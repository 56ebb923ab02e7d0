"""Work that is not done: what the cache costs an item, and how much sooner a generation ends with its verdict."""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import redis

from infra.coordination.cache import open_cache
from infra.servers.embedded import EmbeddedServers
from infra.settings import Settings
from producer.datasets import open_dataset, valid_items, validate
from schemas.guards import Mode
from schemas.messages import ChunkItem, Lane
from tests.benchmarks.kit.figures import Figure, median_figure
from tests.support.make import FINGERPRINT
from worker.consumer.answers import keys_of, pack
from worker.device.engines.transformers import TransformersEngine
from worker.device.protocol import DeviceRequest, Generated, Kind, Scored
from worker.guards.registry import load_guard, resolve_checkpoint

_ENTRIES: Final = 50_000
_CHUNK: Final = 64
_PROMPT_TOKENS: Final = 300
_ROUNDS: Final = 200
_BATCH: Final = 32


def run(*, quick: bool) -> Iterator[Figure]:
    """The cache on a Valkey of its own, then libra-tiny on the demo set."""
    yield from _cache()
    yield from _early_end(runs=1 if quick else 7)


def _cache() -> Iterator[Figure]:
    prompts = [array("i", range(start, start + _PROMPT_TOKENS)) for start in range(_ENTRIES)]
    request = DeviceRequest(Kind.SCORE, Lane.BULK, prompts, labels=((1,), (2,)))
    keys = keys_of(FINGERPRINT, request)
    chunk = DeviceRequest(Kind.SCORE, Lane.BULK, prompts[:_CHUNK], labels=((1,), (2,)))
    with tempfile.TemporaryDirectory() as folder, EmbeddedServers(Path(folder), keep=False) as urls:
        cache, client = open_cache(urls.redis_url, Settings()), redis.Redis.from_url(urls.redis_url)

        def keep(values: Mapping[bytes, bytes]) -> None:
            with client.pipeline() as pipe:
                cache.put(pipe, values)
                pipe.execute()

        for name, answer in (("score", Scored((-0.1, -3.0))), ("generate, 10 ids", Generated(tuple(range(10))))):
            client.flushdb()
            before = int(client.info("memory")["used_memory"])
            for start in range(0, _ENTRIES, _CHUNK):
                keep(dict.fromkeys(keys[start : start + _CHUNK], pack(answer) or b""))
            size = (int(client.info("memory")["used_memory"]) - before) / _ENTRIES
            yield Figure("spared", f"cache, an answer of {name}", size, "bytes")
        values = dict.fromkeys(keys[:_CHUNK], bytes(16))
        for name, action in (
            (f"keys of {_CHUNK} prompts", lambda: keys_of(FINGERPRINT, chunk)),
            (f"look-up of {_CHUNK}", lambda: cache.get(keys[:_CHUNK])),
            (f"writing of {_CHUNK}", lambda: keep(values)),
        ):
            yield median_figure("spared", f"cache, {name}", _milliseconds(action), "ms")


def _milliseconds(action: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        action()
        took.append((time.perf_counter() - started) * 1e3)
    return took


def _early_end(*, runs: int) -> Iterator[Figure]:
    guard, engine = load_guard("libra-tiny"), TransformersEngine(resolve_checkpoint("libra-tiny"))
    with open_dataset("demo") as dataset:
        items = [row.item for row in valid_items(dataset, validate(dataset))]
    chunk = [ChunkItem(seq=at, question=item.question, response=item.response) for at, item in enumerate(items)]
    prompts = sorted((window for windows in guard.render(chunk, Mode.GENERATE) for window in windows), key=len)
    options: dict[str, Any] = {"max_new_tokens": guard.max_new_tokens, "stop_ids": guard.stop_ids}

    def written(verdict_ids: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], float]:
        started = time.process_time()
        batches = [prompts[start : start + _BATCH] for start in range(0, len(prompts), _BATCH)]
        rows = [row for batch in batches for row in engine.generate(batch, **options, verdict_ids=verdict_ids)]
        return rows, time.process_time() - started

    written(guard.verdict_ids)
    whole, cut = zip(*((written(()), written(guard.verdict_ids)) for _ in range(runs)), strict=True)
    labels = [[guard.read_ids(0, [row]).label for row in rows] for rows in (whole[0][0], cut[0][0])]
    ratios = [full / early for (_, full), (_, early) in zip(whole, cut, strict=True)]
    ids = [sum(map(len, rows)) / len(prompts) for rows in (whole[0][0], cut[0][0])]
    yield median_figure("spared", "early end, libra-tiny: CPU time of the whole texts / of the cut ones", ratios, "")
    yield Figure("spared", "early end, libra-tiny: new ids of a whole text", ids[0], "ids")
    yield Figure("spared", "early end, libra-tiny: new ids of a cut one", ids[1], "ids")
    alike = sum(map(lambda one, other: one is other, *labels)) / len(labels[0])
    yield Figure("spared", "early end, libra-tiny: labels alike", alike, "", at_least=1.0)
