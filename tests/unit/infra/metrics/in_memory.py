"""Ranking and calibration once more, over all scores in memory: what the streamed ones must equal digit for digit."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import fsum
from operator import mul

from infra.metrics.scores import ECE_BINS, Calibration, Ranking


def _ties_from_above(unsafe: Sequence[float], safe: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Unsafe and safe rows at each distinct score, highest score first."""
    above, below = reversed(unsafe), reversed(safe)
    high, low = next(above, -1.0), next(below, -1.0)  # below any probability: nothing is left
    while high >= 0 or low >= 0:
        score = high if high > low else low  # max() takes three times as long
        up = down = 0
        while high == score:
            high = next(above, -1.0)
            up += 1
        while low == score:
            low = next(below, -1.0)
            down += 1
        yield up, down


def _mean_variance(total: int, squares: int, count: int, scale: int) -> float:
    """Variance of the mean of `count` integers given their sum and sum of squares, each divided by `scale`."""
    return (squares * count - total * total) / (count * count * (count - 1) * scale * scale)


def ranking_in_memory(unsafe: Sequence[float], safe: Sequence[float]) -> Ranking | None:
    """AUROC with ties counted half, its variance, and average precision; None unless both classes are there.

    AUROC and variance: DeLong, DeLong and Clarke-Pearson 1988, over placement values. Average precision: sum of
    (recall step x precision) over distinct scores, highest first, without interpolation. Placements are
    summed as integers (doubled, for the ties), so the result does not depend on the rows' order.
    """
    positives, negatives = len(unsafe), len(safe)
    if not positives or not negatives:
        return None
    tp = fp = placed = placed_squares = missed_squares = 0
    precisions = 0.0
    for up, down in _ties_from_above(unsafe, safe):
        if up:
            beaten = 2 * (negatives - fp) - down
            placed += up * beaten
            placed_squares += up * beaten * beaten
            precisions += up * (tp + up) / (tp + up + fp + down)
        if down:
            beaten_by = 2 * tp + up
            missed_squares += down * beaten_by * beaten_by
        tp += up
        fp += down
    variance = None
    if positives > 1 and negatives > 1:
        variance = _mean_variance(placed, placed_squares, positives, 2 * negatives)
        variance += _mean_variance(placed, missed_squares, negatives, 2 * positives)
    return Ranking(placed / (2 * positives * negatives), precisions / positives, variance)


def calibration_in_memory(unsafe: Sequence[float], safe: Sequence[float]) -> Calibration | None:
    """ECE and Brier score of p_unsafe as the probability that a row is unsafe; None without rows.

    ECE = sum over bins of (rows in bin / rows) x |mean p_unsafe - share of unsafe rows|, in `ECE_BINS` bins
    [k/15, (k+1)/15). It reads p_unsafe, not the confidence of the predicted class, because p_unsafe is
    what thresholds are set on and does not depend on one. Brier = mean of (p_unsafe - truth) squared.
    """
    rows = len(unsafe) + len(safe)
    if not rows:
        return None
    misses = array("d", (1 - p for p in unsafe))
    brier = fsum((fsum(map(mul, misses, misses)), fsum(map(mul, safe, safe)))) / rows
    edges = [k / ECE_BINS for k in range(1, ECE_BINS)]
    gaps = []
    for high, low in zip(_cut(unsafe, edges), _cut(safe, edges), strict=True):
        gaps.append(abs(fsum(high) + fsum(low) - len(high)))
    return Calibration(fsum(gaps) / rows, brier)


def _cut(ascending: Sequence[float], edges: Sequence[float]) -> Iterator[Sequence[float]]:
    start = 0
    for edge in edges:
        end = bisect_left(ascending, edge, start)
        yield ascending[start:end]
        start = end
    yield ascending[start:]
