"""Metrics of p_unsafe against the truth, streamed: ranking (AUROC, average precision) and calibration (ECE, Brier).

No score is kept. Ranking asks for the rows in the order of their scores, highest first; calibration takes any order and
sums exactly, so that the order of the rows changes no digit.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain
from math import exp, fsum, inf, log, sqrt
from operator import mul, neg
from statistics import NormalDist
from typing import Final, NamedTuple

ECE_BINS: Final = 15
"""Equal-width bins over p_unsafe (Guo et al. 2017 use 15)."""

_EDGES: Final = tuple(k / ECE_BINS for k in range(1, ECE_BINS))
_BUFFERED: Final = 1_024


class Ranking(NamedTuple):
    """The quality of a ranking, unsafe above safe. `variance` is AUROC's, None with fewer than two rows of a class."""

    auroc: float
    average_precision: float
    variance: float | None


class Calibration(NamedTuple):
    """The distance of scores from the probability that they claim to be."""

    ece: float
    brier: float


def begins_tie(score: float, *, after: float) -> bool:
    """True if a row's score differs from that of the row before it; the highest score comes first.

    Raises:
        ValueError: it is not in that order.
    """
    if score != after and not score < after:
        raise ValueError("the rows are not in the order of their scores, highest first")
    return score != after


class RankSums:
    """AUROC with ties counted half, its variance, and average precision, from rows that come highest score first.

    AUROC and variance: DeLong, DeLong and Clarke-Pearson 1988, over placement values. Average precision: sum of
    (recall step x precision) over distinct scores, highest first, without interpolation. Placements are summed as
    integers (doubled, for the ties). How many safe rows lie below an unsafe one is known only at the end, so what is
    summed is how many lie above it: placement = 2 x safe rows - above.
    """

    __slots__ = ("_above", "_above_squares", "_down", "_fp", "_missed_squares", "_precisions", "_score", "_tp", "_up")

    def __init__(self) -> None:
        self._score = inf
        self._up = self._down = self._tp = self._fp = 0
        self._above = self._above_squares = self._missed_squares = 0
        self._precisions = 0.0

    def add(self, score: float, *, unsafe: bool) -> None:
        """Take the next row."""
        if begins_tie(score, after=self._score):
            self._end_tie()
            self._score = score
        if unsafe:
            self._up += 1
        else:
            self._down += 1

    def _end_tie(self) -> None:
        """All rows of one score are there: count them in."""
        up, down = self._up, self._down
        if up:
            above = 2 * self._fp + down
            self._above += up * above
            self._above_squares += up * above * above
            self._precisions += up * (self._tp + up) / (self._tp + up + self._fp + down)
        if down:
            beaten_by = 2 * self._tp + up
            self._missed_squares += down * beaten_by * beaten_by
        self._tp += up
        self._fp += down
        self._up = self._down = 0

    def ranking(self) -> Ranking | None:
        """The result over all rows so far; None unless both classes are there."""
        self._end_tie()
        positives, negatives = self._tp, self._fp
        if not positives or not negatives:
            return None
        placed = 2 * negatives * positives - self._above
        placed_squares = 4 * negatives * (negatives * positives - self._above) + self._above_squares
        variance = None
        if positives > 1 and negatives > 1:
            variance = _mean_variance(placed, placed_squares, positives, 2 * negatives)
            variance += _mean_variance(placed, self._missed_squares, negatives, 2 * positives)
        return Ranking(placed / (2 * positives * negatives), self._precisions / positives, variance)


def _mean_variance(total: int, squares: int, count: int, scale: int) -> float:
    """Variance of the mean of `count` integers given their sum and sum of squares, each divided by `scale`."""
    return (squares * count - total * total) / (count * count * (count - 1) * scale * scale)


def auroc_interval(auroc: float, variance: float, level: float) -> tuple[float, float] | None:
    """DeLong's interval on the logit scale, so that it stays within (0, 1); None at 0 and 1, where it collapses."""
    if not 0 < auroc < 1:
        return None
    reach = NormalDist().inv_cdf((1 + level) / 2) * sqrt(variance) / (auroc * (1 - auroc))
    centre = log(auroc / (1 - auroc))
    return _logistic(centre - reach), _logistic(centre + reach)


def _logistic(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > 0 else exp(x) / (1 + exp(x))


class ScoreSums:
    """p_unsafe of the rows of one truth, summed by bin, and its squared distance from that truth. Any order."""

    def __init__(self, *, unsafe: bool) -> None:
        self.count = 0
        self._truth = float(unsafe)
        self._buffer = array("d")
        self._bins: list[list[float]] = [[] for _ in range(ECE_BINS)]
        self._bin_counts = [0] * ECE_BINS
        self._squares: list[float] = []

    def add(self, p_unsafe: float) -> None:
        """Take a row."""
        self._buffer.append(p_unsafe)
        if len(self._buffer) == _BUFFERED:
            self._fold()

    def _fold(self) -> None:
        """Put what is buffered into the sums."""
        ascending = array("d", sorted(self._buffer))
        start = 0
        for number, edge in enumerate((*_EDGES, inf)):
            end = bisect_left(ascending, edge, start)
            if end > start:
                self._bins[number] = _exact([*self._bins[number], *ascending[start:end]])
                self._bin_counts[number] += end - start
            start = end
        misses = array("d", (1 - p for p in ascending)) if self._truth else ascending
        self._squares = _exact([*self._squares, *map(mul, misses, misses)])
        self.count += len(ascending)
        self._buffer = array("d")

    @classmethod
    def merged(cls, parts: Iterable[ScoreSums], *, unsafe: bool) -> ScoreSums:
        """All rows of some sums of one truth as one."""
        whole = cls(unsafe=unsafe)
        for part in parts:
            part._fold()
            whole.count += part.count
            whole._squares += part._squares
            for number in range(ECE_BINS):
                whole._bins[number] += part._bins[number]
                whole._bin_counts[number] += part._bin_counts[number]
        return whole

    @property
    def squares(self) -> float:
        """Sum of the squared distances from the truth."""
        return fsum(self._squares)

    def bins(self) -> list[tuple[float, int]]:
        """Sum of p_unsafe, and rows, in each bin."""
        return [(fsum(parts), count) for parts, count in zip(self._bins, self._bin_counts, strict=True)]


def _exact(values: Sequence[float]) -> list[float]:
    """A few numbers whose sum is, to the last bit, that of all these (Shewchuk 1997: an expansion)."""
    parts: list[float] = []
    while rest := fsum(chain(values, map(neg, parts))):
        parts.append(rest)
    return parts


def calibration(unsafe: ScoreSums, safe: ScoreSums) -> Calibration | None:
    """ECE and Brier score of p_unsafe as the probability that a row is unsafe; None without rows.

    ECE = sum over bins of (rows in bin / rows) x |mean p_unsafe - share of unsafe rows|, in `ECE_BINS` bins
    [k/15, (k+1)/15). It reads p_unsafe, not the confidence of the predicted class, because p_unsafe is
    what thresholds are set on and does not depend on one. Brier = mean of (p_unsafe - truth) squared.
    """
    rows = unsafe.count + safe.count
    if not rows:
        return None
    gaps = [abs(high + low - count) for (high, count), (low, _) in zip(unsafe.bins(), safe.bins(), strict=True)]
    return Calibration(fsum(gaps) / rows, fsum((unsafe.squares, safe.squares)) / rows)
