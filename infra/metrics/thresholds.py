"""Thresholds of a cascade's stage, chosen so that what it settles by itself is wrong no more often than asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_Z95: Final = 1.959964


class Scored(NamedTuple):
    """A labelled item as a guard scored it; `right`: its label was the truth."""

    p_unsafe: float
    right: bool


class Side(NamedTuple):
    """The items that one threshold settles, and the number settled wrongly."""

    items: int = 0
    wrong: int = 0

    @property
    def error(self) -> float | None:
        """Share settled wrongly; None where nothing is settled."""
        return self.wrong / self.items if self.items else None

    @property
    def error_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the error."""
        if not self.items:
            return None
        n, share, z2 = self.items, self.wrong / self.items, _Z95**2
        middle = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


class Thresholds(NamedTuple):
    """A stage settles what it scores at most `sure_below` or at least `sure_above`.

    -1 or 2 where no score on that side is sure enough: no item is settled there.
    """

    sure_below: float
    sure_above: float
    below: Side
    above: Side
    items: int

    @property
    def settled_share(self) -> float | None:
        """Share of the items that are settled; None where there are none."""
        return (self.below.items + self.above.items) / self.items if self.items else None


def fit_thresholds(rows: Iterable[Scored], target_error: float) -> Thresholds:
    """The thresholds that settle most, each side wrong at most in the share `target_error` of what it settles.

    Pure and monotone: a larger target never settles less. Sure of "safe" can only be below 0.5, of "unsafe" from there.
    """
    ordered = sorted(rows)
    middle = next((at for at, row in enumerate(ordered) if row.p_unsafe >= 0.5), len(ordered))
    low, below = _longest(ordered[:middle], target_error)
    high, above = _longest(ordered[middle:][::-1], target_error)
    return Thresholds(
        sure_below=-1.0 if low is None else low,
        sure_above=2.0 if high is None else high,
        below=below,
        above=above,
        items=len(ordered),
    )


def _longest(surest_first: Sequence[Scored], target_error: float) -> tuple[float | None, Side]:
    """The last score to which the rows may be settled, and what that settles. Equal scores go together."""
    found: tuple[float | None, Side] = (None, Side())
    wrong = 0
    for count, row in enumerate(surest_first, start=1):
        wrong += not row.right
        ends = count == len(surest_first) or surest_first[count].p_unsafe != row.p_unsafe
        if ends and wrong <= target_error * count:
            found = row.p_unsafe, Side(count, wrong)
    return found
