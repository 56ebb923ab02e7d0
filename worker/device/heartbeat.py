"""The pulse of a process, in a small file that its supervisor reads without asking: if it hangs, and its rates.

The file lives in the page cache's shared memory, so it can be read while the process is stuck. A consumer keeps one as
well, without batches.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

_COUNTS: Final = struct.Struct("<8d")
"""The fields of a `Pulse` that change with each batch, in their order."""
_LIFE: Final = struct.Struct("<2d")
"""Its last two: the last sign of life, and whether it is ready."""

BEAT_EVERY_S: Final = 1.0
_LONGEST_LOOK_S: Final = 1.0
"""More time than this between two looks is the watcher's own pause: a stopped container, a suspended machine."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """Counts of a device process since it started.

    `deadline` is the CLOCK_MONOTONIC second by which the running batch should have ended, 0 when idle. `items`
    counts prompts that were answered, `rows` those that ran (equal ones that wait together run once), and so do
    `tokens` and `padded_tokens`. `budget_tokens` is the token budget of a batch as it is now, 0 before the first one.
    `beat_at` is the second of the last sign of life, 0 before the first; `ready`: no longer loading.
    """

    deadline: float = 0.0
    batches: int = 0
    items: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    busy_s: float = 0.0
    budget_tokens: int = 0
    beat_at: float = 0.0
    ready: bool = False


class Heartbeat:
    """The writing side. Opening it sets every number to zero."""

    def __init__(self, path: Path) -> None:
        size = _COUNTS.size + _LIFE.size
        path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        self._done = Pulse()
        self._ready = False

    def keep_beating(self, is_well: Callable[[], bool] = lambda: True) -> None:
        """Show from a thread of its own, every second, that this process runs; while it is not well, do not."""

        def beat() -> None:
            while True:
                if is_well():
                    self._live()
                time.sleep(BEAT_EVERY_S)

        threading.Thread(target=beat, daemon=True, name="heartbeat").start()

    def ready(self) -> None:
        """Loading is over."""
        self._ready = True
        self._live()

    def _live(self) -> None:
        _LIFE.pack_into(self._memory, _COUNTS.size, time.monotonic(), self._ready)

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
        _COUNTS.pack_into(self._memory, 0, *astuple(self._done)[:8])


def read_pulse(path: Path) -> Pulse:
    """The pulse as it stands; all zero where there is no file yet."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Pulse()
    if len(content) < _COUNTS.size + _LIFE.size:
        return Pulse()
    deadline, batches, items, rows, tokens, padded_tokens, busy_s, budget = _COUNTS.unpack_from(content)
    beat_at, ready = _LIFE.unpack_from(content, _COUNTS.size)
    counts = (int(batches), int(items), int(rows), int(tokens), int(padded_tokens))
    return Pulse(deadline, *counts, busy_s, int(budget), beat_at, bool(ready))


class Watch:
    """Tells from looks at one process's pulse that it hangs: in a batch, in loading, or without a sign of life.

    Only time in which the watcher itself was awake counts, so that nobody is killed for having been stopped together
    with it. `load_s`: how long loading may take; meanwhile a library may keep the interpreter to itself, so that a
    silence may last `load_silence_s`, and afterwards `silence_s`.
    """

    def __init__(self, *, silence_s: float, load_silence_s: float, load_s: float) -> None:
        self._silence_s = silence_s
        self._load_silence_s = max(silence_s, load_silence_s)
        self._load_s = load_s
        self._looked_at: float | None = None
        self._beat_at = self._deadline = -1.0
        self._silent_s = self._loading_s = self._asleep_s = 0.0

    def hangs(self, now: float, pulse: Pulse) -> str | None:
        """The way in which the process hangs at `now` (CLOCK_MONOTONIC seconds); None if it does not."""
        passed_s = 0.0 if self._looked_at is None else now - self._looked_at
        awake_s = min(passed_s, _LONGEST_LOOK_S)
        self._looked_at = now
        self._silent_s = self._silent_s + awake_s if pulse.beat_at == self._beat_at else 0.0
        self._asleep_s = self._asleep_s + passed_s - awake_s if pulse.deadline == self._deadline else 0.0
        self._loading_s += 0.0 if pulse.ready else awake_s
        self._beat_at, self._deadline = pulse.beat_at, pulse.deadline
        if 0 < pulse.deadline < now - self._asleep_s:
            return "its batch runs past the deadline"
        if self._silent_s > (self._silence_s if pulse.ready else self._load_silence_s):
            return f"it gave no sign of life for {self._silent_s:.0f} s"
        if self._loading_s > self._load_s:
            return f"it has been loading for {self._loading_s:.0f} s"
        return None


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
