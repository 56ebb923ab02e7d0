"""Finds the batch size at which a device is fastest, and keeps it for the next start.

Knows nothing of models: it is given a function that runs a batch of so many tokens, and times it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from infra.log import get_logger
from worker.device.engines.base import OutOfMemory

log = get_logger(__name__)

WORTH_IT: Final = 1.02
"""Each doubling must be this much faster: a large batch makes the next request wait longer."""
ROUNDS: Final = 3
"""Rounds in which each size is timed, in turns, so that a slow moment falls on all of them; the best time counts."""


def fastest_budget(
    run: Callable[[int], None],
    *,
    smallest: int,
    largest: int,
    patience_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The token budget, of `smallest` and its doublings up to `largest`, from which on a batch is hardly faster.

    Ends early where a batch takes longer than `patience_s`, where three doublings in a row gained nothing, or where
    memory ran out: then half of what fitted is kept free for prompts of another shape.

    Raises:
        OutOfMemory: not even the smallest batch fits.
    """
    took_s: dict[int, float] = {}
    at_most, tokens = largest, smallest
    while tokens <= largest and tokens <= 8 * _best(took_s, smallest):
        took = _timed(run, tokens, clock)
        if took is None and tokens == smallest:
            raise OutOfMemory(f"not even a batch of {smallest} tokens fits into the device's memory")
        if took is None:
            at_most = max(smallest, tokens // 4)
            break
        took_s[tokens] = took
        if took > patience_s:
            break
        tokens *= 2
    for size in [*took_s] * (ROUNDS - 1):
        again = _timed(run, size, clock) if size <= at_most else took_s[size]
        if again is None:  # it did fit before: a neighbour came, or the memory is in pieces by now
            at_most = min(at_most, max(smallest, size // 4))
        else:
            took_s[size] = min(took_s[size], again)
    best = _best({size: seconds for size, seconds in took_s.items() if size <= at_most}, smallest)
    log.info("budget_found", tokens=best, tokens_per_s=round(best / took_s[best]))
    return best


def _best(took_s: Mapping[int, float], smallest: int) -> int:
    """The largest size that was worth every doubling since a smaller one."""
    best, best_rate = smallest, 0.0
    for size, seconds in took_s.items():
        rate = size / max(seconds, 1e-9)
        if rate > best_rate * WORTH_IT ** (size // best).bit_length() / WORTH_IT:
            best, best_rate = size, rate
    return best


def _timed(run: Callable[[int], None], tokens: int, clock: Callable[[], float]) -> float | None:
    """Seconds of a batch; None where memory ran out."""
    started = clock()
    try:
        run(tokens)
    except OutOfMemory:
        return None
    return clock() - started


class BudgetBook:
    """Budgets found earlier, one file per key: another guard, device or library version has another key."""

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
