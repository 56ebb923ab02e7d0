"""Finds the batch size at which a device is fastest, and keeps it for the next start.

Knows nothing of models: it is given a function that runs a batch of so many tokens, and times it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from infra.log import get_logger
from worker.device.engines.base import OutOfMemory

log = get_logger(__name__)

WORTH_IT: Final = 1.03
"""Each doubling must be this much faster: a large batch makes whoever comes next wait longer."""
TRIES: Final = 2


def fastest_budget(
    run: Callable[[int], None],
    *,
    smallest: int,
    largest: int,
    patience_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The token budget, of `smallest` and its doublings up to `largest`, from which on a batch is hardly faster.

    Ends early where a batch takes longer than `patience_s`, where two doublings in a row gained nothing, or where
    memory ran out: then half of what fitted is kept free for prompts of another shape.

    Raises:
        OutOfMemory: not even the smallest batch fits.
    """
    best, best_rate, fruitless, tokens = smallest, 0.0, 0, smallest
    while tokens <= largest and fruitless < 2:
        try:
            took_s = min(_timed(run, tokens, clock) for _ in range(TRIES))
        except OutOfMemory:
            if tokens == smallest:
                raise
            best = min(best, max(smallest, tokens // 4))
            break
        rate = tokens / max(took_s, 1e-9)
        if rate > best_rate * WORTH_IT ** (fruitless + 1):
            best, best_rate, fruitless = tokens, rate, 0
        else:
            fruitless += 1
        if took_s > patience_s:
            break
        tokens *= 2
    log.info("budget_found", tokens=best, tokens_per_s=round(best_rate))
    return best


def _timed(run: Callable[[int], None], tokens: int, clock: Callable[[], float]) -> float:
    started = clock()
    run(tokens)
    return clock() - started


class BudgetBook:
    """What was found before, in one file per key: another guard, device or library version has another key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, key: str, find: Callable[[], int]) -> int:
        """The budget noted under a key; found now and noted where there is none that can be read."""
        path = self._folder / f"{key}.json"
        try:
            noted = int(json.loads(path.read_text(encoding="utf-8"))["max_batch_tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            noted = 0
        if noted > 0:
            return noted
        found = find()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps({"max_batch_tokens": found}) + "\n", encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            log.warning("budget_not_kept", error=str(error))
        return found
