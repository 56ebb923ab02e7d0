"""Latency of live verdicts while 16 bulk runs of 60,000 items end together and their reports are computed.

The runs are in the ledger already, each with one chunk unsettled; those verdicts come together. Live items arrive
before that and until the last report is stored, and each one's latency counts from the moment it was due.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from infra.ledger import intake, settlement
from producer.intake.live import LiveClient
from schemas.messages import JudgeChunk
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.rig import GUARD, Rig, rig, text_of
from tests.support.make import items, spec, verdicts_for

_RUNS: Final = 16
_ITEMS: Final = 60_000
_QUICK_ITEMS: Final = 6_000
_CHUNK: Final = 64
_EVERY_S: Final = 0.1
_THREADS: Final = 64
_TEXT_BYTES: Final = 300
_P99_MS: Final = 250
_MOST_S: Final = 400.0


def run(*, quick: bool) -> Iterator[Figure]:
    """Live items beside the reports of runs that end together."""
    size = _QUICK_ITEMS if quick else _ITEMS
    with rig() as found, found.fleet("--fake-batch-ms", "10", "--fake-item-ms", "2"):
        last = [_nearly_settled(found, size) for _ in range(_RUNS)]
        client = LiveClient(found.services, guard=GUARD, tenant="benchmark", cache=False)
        try:
            alone = latencies_ms(client, time.monotonic, seconds=10.0)
            for chunk in last:
                found.services.publisher.settle(verdicts_for(chunk))
            began = time.monotonic()
            beside = latencies_ms(client, lambda: _unfinished(found), seconds=_MOST_S)
            took_s = time.monotonic() - began
        finally:
            client.close()
    note = f"{_RUNS} runs of {size:,}; {len(beside):,} live items, {1 / _EVERY_S:g}/s, worst {max(beside):.0f} ms"
    yield Figure("reports_beside_live", "p99 alone", _p99(alone), "ms", note=f"{len(alone):,} live items")
    yield Figure("reports_beside_live", "p50 beside reports", statistics.median(beside), "ms")
    yield Figure("reports_beside_live", "p99 beside reports", _p99(beside), "ms", at_most=_P99_MS, note=note)
    yield Figure("reports_beside_live", "until the last report", took_s, "s")


def _nearly_settled(found: Rig, size: int) -> JudgeChunk:
    """A sealed run of so many items, all settled but those of the chunk that is returned."""
    engine, order = found.services.engine, spec(guard="settled-elsewhere")
    run_id = intake.create_run(engine, order)
    last: JudgeChunk | None = None
    for first in range(0, size, 64 * _CHUNK):
        batch = items(min(64 * _CHUNK, size - first), prefix=f"{first}")
        groups = [batch[start : start + _CHUNK] for start in range(0, len(batch), _CHUNK)]
        chunks = intake.accept(engine, run_id, order, groups)
        settled, last = ([*([last] if last else []), *chunks[:-1]], chunks[-1])
        settlement.settle_all(engine, [verdicts_for(chunk) for chunk in settled])
    intake.seal(engine, run_id)
    assert last is not None
    return last


def _unfinished(found: Rig) -> float:
    return float(found.scalar("SELECT count(*) FROM runs WHERE guard = 'settled-elsewhere' AND completed_at IS NULL"))


def latencies_ms(client: LiveClient, going_on: Callable[[], float], *, seconds: float) -> list[float]:
    """One latency per item, from the moment it was due, as long as something goes on, at most for so long."""

    def judge(due: float, number: int) -> float:
        client.judge(text_of(number, _TEXT_BYTES))
        return 1_000 * (time.monotonic() - due)

    due = time.monotonic() + 0.1
    end = due + seconds
    futures = []
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        while due < end and going_on():
            time.sleep(max(0.0, due - time.monotonic()))
            futures.append(pool.submit(judge, due, len(futures)))
            due += _EVERY_S
        return [future.result() for future in futures]


def _p99(took_ms: list[float]) -> float:
    return statistics.quantiles(took_ms, n=100)[98]
