"""Counters of what a collector settled, added up on Redis once a second."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from infra.coordination import counters
from infra.coordination.counters import Tally
from infra.coordination.store import CoordinationStore
from infra.ledger.settlement import Settled
from infra.retry import ignore_redis_errors
from schemas.items import Label
from schemas.messages import VerdictChunk
from schemas.verdicts import Outcome

_EVERY_S: Final = 1.0
"""Adding up on Redis with each transaction instead would cost the collector a tenth of its rate."""


class Counts:
    """Counted and not yet added up on Redis. Thread-safe."""

    def __init__(self, coordination: CoordinationStore) -> None:
        self._coordination = coordination
        self._lock = threading.Lock()
        self._tally = Tally()

    def count(self, settled: Iterable[tuple[VerdictChunk, Settled]]) -> None:
        """Take note of what settlements changed."""
        with self._lock:
            for chunk, changed in settled:
                count_settled(self._tally, chunk, changed)

    def run(self, stop: threading.Event) -> None:
        """Add up every second until stopped."""
        while not stop.wait(_EVERY_S):
            self.flush()

    def flush(self) -> None:
        """Add what was counted to the fleet's counters; it is forgotten where Redis is away."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        with ignore_redis_errors("counts"):
            self._coordination.counters.add(tally)


def count_settled(tally: Tally, chunk: VerdictChunk, changed: Settled) -> None:
    """Items by outcome and label, duplicates, cache hits; tokens and stage times where something changed."""
    lane = (changed.guard, changed.lane)
    settled = (
        (Outcome.SCORED, Label.SAFE.value, changed.scored - changed.unsafe),
        (Outcome.SCORED, Label.UNSAFE.value, changed.unsafe),
        (Outcome.UNPARSEABLE, counters.NO_LABEL, changed.unparseable),
        (Outcome.DEAD, counters.NO_LABEL, changed.dead),
    )
    for outcome, label, items in settled:
        tally.add(counters.ITEMS_SETTLED, *lane, outcome.value, label, by=items)
    tally.add(counters.ITEMS_CACHED, *lane, by=changed.cached)
    tally.add(counters.DUPLICATES, *lane, by=len(chunk.verdicts) - changed.inserted)
    if not changed.inserted:
        return
    stages = (chunk.timings.queue_s, chunk.timings.render_s, chunk.timings.device_s)
    for stage, seconds in zip(counters.STAGES, stages, strict=True):
        tally.observe(counters.STAGE, seconds, *lane, stage)
    if chunk.spent is not None:
        spent = (chunk.spent.prompt_tokens, chunk.spent.new_tokens)
        for kind, tokens in zip(counters.TOKEN_KINDS, spent, strict=True):
            tally.add(counters.TOKENS_SPENT, *lane, kind, by=tokens)
