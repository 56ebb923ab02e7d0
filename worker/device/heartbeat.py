"""The pulse of a device process, in a small file that the supervisor reads without asking, and the rates drawn from it.

The file lives in the page cache's shared memory, so it can be read while the device process is stuck.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

_LAYOUT: Final = struct.Struct("<8d")
"""The fields of a `Pulse` in their order."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """Counts of a device process since it started.

    `deadline` is the CLOCK_MONOTONIC second by which the running batch should have ended, 0 when idle. `items`
    counts prompts that were answered, `rows` those that ran (equal ones that wait together run once), and so do
    `tokens` and `padded_tokens`. `budget_tokens` is the token budget of a batch as it is now, 0 before the first one.
    """

    deadline: float = 0.0
    batches: int = 0
    items: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    busy_s: float = 0.0
    budget_tokens: int = 0


class Heartbeat:
    """The writing side. Opening it sets every number to zero."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_LAYOUT.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._done = Pulse()

    def begin(self, deadline: float) -> None:
        """A batch starts that should end by `deadline` (CLOCK_MONOTONIC seconds)."""
        struct.pack_into("<d", self._memory, 0, deadline)

    def end(self, batch: Pulse) -> None:
        """The batch ended, having done this much; one without items failed and counts by its time only."""
        done = self._done
        self._done = Pulse(
            batches=done.batches + bool(batch.items),
            items=done.items + batch.items,
            rows=done.rows + batch.rows,
            tokens=done.tokens + batch.tokens,
            padded_tokens=done.padded_tokens + batch.padded_tokens,
            busy_s=done.busy_s + batch.busy_s,
            budget_tokens=batch.budget_tokens or done.budget_tokens,
        )
        _LAYOUT.pack_into(self._memory, 0, *astuple(self._done))


def read_pulse(path: Path) -> Pulse:
    """The pulse as it stands; all zero where there is no file yet."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Pulse()
    if len(content) < _LAYOUT.size:
        return Pulse()
    deadline, batches, items, rows, tokens, padded_tokens, busy_s, budget = _LAYOUT.unpack_from(content)
    return Pulse(deadline, int(batches), int(items), int(rows), int(tokens), int(padded_tokens), busy_s, int(budget))


WINDOW_S: Final = 60.0


class Pace:
    """Looks at a pulse now and then, and remembers those of the last minute."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Pulse]] = deque()

    def look(self, now: float, pulse: Pulse) -> dict[str, float]:
        """Take a look at `now` (seconds of a steady clock); returns what happened over the last minute.

        Shares are between 0 and 1. What cannot be said yet is absent: everything at the first look after a start,
        padding while nothing ran.
        """
        if self._looks and pulse.busy_s < self._looks[-1][1].busy_s:
            self._looks.clear()  # a new process, counting from zero
        self._looks.append((now, pulse))
        while len(self._looks) > 2 and self._looks[1][0] <= now - WINDOW_S:
            self._looks.popleft()
        start, before = self._looks[0]
        seconds = now - start
        if seconds <= 0:
            return {}
        facts = {
            "over_s": seconds,
            "busy_share": min(1.0, (pulse.busy_s - before.busy_s) / seconds),
            "items_per_s": (pulse.items - before.items) / seconds,
            "tokens_per_s": (pulse.tokens - before.tokens) / seconds,
        }
        if padded := pulse.padded_tokens - before.padded_tokens:
            facts["padding_share"] = 1 - (pulse.tokens - before.tokens) / padded
        return {name: round(value, 4) for name, value in facts.items()}
