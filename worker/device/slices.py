"""How long batches take, and how many tokens run in one time slice. Pure: it is told the times, and looks at no clock.

A batch of n tokens takes a + b·n seconds: a for what every batch costs (on CUDA the launches, thousands of them from
Python), b for each token. Two points tell both: what small batches took on average, and what full ones took. Bulk
batches that were cut short are never learned from: a rate of tokens that includes their a would be lower, the next cut
shorter, and so on down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WEIGHT: Final = 0.2
"""Weight of the newest batch in a mean."""
FIXED_SHARE: Final = 3.0
"""A slice is at least so many times what a batch costs before its first token: two thirds of it are tokens' own."""
LAUNCHES: Final = 1.25
"""Where batches overlap a slice is at least so many launches: planning and answering take their time, too."""
_UNLIKE: Final = 2.0
"""Batches that differ by more than this factor in tokens are two points, not one."""
_ALIKE: Final = 1.25
"""Two points that have drifted together to this factor in tokens are one: noise would be a slope between them."""
_SOONER: Final = 0.5
_LATER: Final = 1.25
"""Factors of the time after which a batch is looked at, where it had ended by then and where it had not."""


@dataclass(slots=True)
class _Mean:
    """Tokens and seconds of a batch, the newest weighing most."""

    tokens: float
    seconds: float

    def add(self, tokens: float, seconds: float) -> None:
        self.tokens += WEIGHT * (tokens - self.tokens)
        self.seconds += WEIGHT * (seconds - self.seconds)


class BatchTimes:
    """What uncut batches took. Where batches overlap, `launch_s` is the time before the next one can be launched."""

    def __init__(self) -> None:
        self._small: _Mean | None = None
        self._large: _Mean | None = None
        self._look_at = 1.0
        self.launch_s = 0.0

    def note_late(self) -> None:
        """A batch had ended before it was looked at: how long it took is not known, and the next is looked at sooner.

        Were the time of the look noted, one slow batch would make all later ones wait for as long.
        """
        self._look_at *= _SOONER

    def note(self, tokens: int, took_s: float, launch_s: float = 0.0) -> None:
        """An uncut batch took so long, of which its launch did `launch_s`."""
        self._look_at = min(1.0, _LATER * self._look_at)
        self.launch_s += (launch_s - self.launch_s) * (WEIGHT if self.launch_s else 1.0)
        if self._large is None:
            self._large = _Mean(tokens, took_s)
        elif tokens > _UNLIKE * self._large.tokens:
            self._small, self._large = self._large, _Mean(tokens, took_s)
        elif tokens * _UNLIKE >= self._large.tokens:
            self._large.add(tokens, took_s)
        elif self._small is None:
            self._small = _Mean(tokens, took_s)
        else:
            self._small.add(tokens, took_s)

    def line(self) -> tuple[float, float]:
        """Seconds of a batch, a, and of a token, b; (0, 0) before the first batch."""
        large, small = self._large, self._small
        if large is None:
            return 0.0, 0.0
        if small is None or large.seconds <= small.seconds or large.tokens < _ALIKE * small.tokens:
            return 0.0, large.seconds / large.tokens
        b = (large.seconds - small.seconds) / (large.tokens - small.tokens)
        return max(0.0, small.seconds - b * small.tokens), b

    def expected_s(self, tokens: int) -> float:
        """Seconds that a batch of so many tokens takes; 0 before the first batch."""
        a, b = self.line()
        return a + b * tokens

    def look_after_s(self, tokens: int) -> float:
        """Seconds after which a batch of so many tokens is looked at, which it takes at most."""
        return self._look_at * self.expected_s(tokens)

    def slice_tokens(self, slice_s: float, *, overlaps: bool) -> int:
        """Tokens of a bulk batch that keeps a live item waiting for one slice, about; 0 before the first batch.

        Where the next batch is launched while one runs, a launch is free if the batch before it lasts as long.
        Elsewhere every batch pays for its own, so that the slice is longer where that is much.
        """
        a, b = self.line()
        if self._large is None or b <= 0:
            return 0
        if overlaps:  # a full batch's launch was hidden, so that its seconds are all its tokens'
            return int(max(slice_s, LAUNCHES * self.launch_s) * self._large.tokens / self._large.seconds)
        return int((max(slice_s, FIXED_SHARE * a) - a) / b)
