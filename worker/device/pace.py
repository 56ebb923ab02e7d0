"""A device's recent rates from two readings of its pulse: busy share, items and tokens per second, padding."""

from __future__ import annotations

from collections import deque
from typing import Final

from worker.device.heartbeat import Pulse

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
