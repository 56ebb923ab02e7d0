"""The plan of a training run: rows and process of each optimizer step. Pure; the same for the same seed.

Every process can work out the whole plan, without a message, and a run resumes at any step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache


def steps_per_epoch(rows: int, batch_rows: int) -> int:
    """Return the number of optimizer steps that see every row once."""
    return math.ceil(rows / batch_rows)


def step_rows(step: int, *, rows: int, batch_rows: int, seed: str) -> list[int]:
    """The rows of the step with this number, counted from 0 over all epochs; an epoch takes each row once."""
    epoch, place = divmod(step, steps_per_epoch(rows, batch_rows))
    return list(_epoch_order(epoch, rows, seed)[place * batch_rows : (place + 1) * batch_rows])


@lru_cache(maxsize=1)
def _epoch_order(epoch: int, rows: int, seed: str) -> list[int]:
    """All rows, shuffled again for each epoch."""
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - reproducible order, not a secret
    return order


def micro_batches(
    chosen: Sequence[int], lengths: Sequence[int], *, process: int, processes: int, device_rows: int
) -> list[list[int]]:
    """Return the rows of a step that one process computes, near-equal lengths together.

    Every process gets as many batches as any other, so that all of them meet at each exchange: some may be empty.
    """
    order = sorted(chosen, key=lambda row: (lengths[row], row))
    mine = order[process::processes]
    batches = math.ceil(math.ceil(len(order) / processes) / device_rows)
    return [mine[at * device_rows : (at + 1) * device_rows] for at in range(batches)]


def learning_rate_share(step: int, *, steps: int, warmup_share: float) -> float:
    """The share of the peak rate at a step: linear up over the warm-up, then linear down to 0 after the last step."""
    warmup = round(steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / (steps - warmup)
