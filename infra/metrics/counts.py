"""Metrics that follow from four counts (the rows of each class judged right and wrong), and their intervals.

Formulas are those of the benchmark's `evaluate_metrics.py` (precision = TP / (TP + FP), and so on) with F1
written over counts, 2 TP / (2 TP + FP + FN): equal wherever the benchmark's own form is defined, and 0
instead of a crash for a guard that never finds the class.

Intervals come from resampling the counts instead of the rows. Drawing n rows with replacement and counting them is one
draw from a multinomial over the four counts, so this is the ordinary percentile bootstrap (Efron), without numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, sqrt
from random import Random
from typing import Final, NamedTuple

_NORMAL_FROM: Final = 100.0
"""Variance, in rows squared, from which a draw is a rounded normal one. It moves the ends of a 95 % interval by
less than half a row, (1 - 2p)(z^2 - 1)/6; the noise that 1,000 resamples leave in them is twice that."""


class Confusion(NamedTuple):
    """Rows by truth and verdict; `unsafe` is the positive class."""

    tp: int = 0
    fn: int = 0
    fp: int = 0
    tn: int = 0

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self)

    @property
    def mirrored(self) -> Confusion:
        """The same rows with `safe` as the positive class."""
        return Confusion(self.tn, self.fp, self.fn, self.tp)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _precision(c: Confusion) -> float | None:
    return _ratio(c.tp, c.tp + c.fp)


def _recall(c: Confusion) -> float | None:
    return _ratio(c.tp, c.tp + c.fn)


def _f1(c: Confusion) -> float | None:
    return 2 * c.tp / (2 * c.tp + c.fp + c.fn) if c.tp + c.fn else None


class CountMetric(NamedTuple):
    """A formula over counts; it gives None where it is undefined, and `reason` says when that is."""

    formula: Callable[[Confusion], float | None]
    reason: str


NO_LABELS: Final = "no row has a human label"

COUNT_METRICS: Final[dict[str, CountMetric]] = {
    "accuracy": CountMetric(lambda c: _ratio(c.tp + c.tn, c.total), NO_LABELS),
    "f1_safe": CountMetric(lambda c: _f1(c.mirrored), "no row is truly safe"),
    "f1_unsafe": CountMetric(_f1, "no row is truly unsafe"),
    "precision_safe": CountMetric(lambda c: _precision(c.mirrored), "no row was judged safe"),
    "recall_safe": CountMetric(lambda c: _recall(c.mirrored), "no row is truly safe"),
    "precision_unsafe": CountMetric(_precision, "no row was judged unsafe"),
    "recall_unsafe": CountMetric(_recall, "no row is truly unsafe"),
    "balanced_accuracy": CountMetric(
        lambda c: (c.tp / (c.tp + c.fn) + c.tn / (c.fp + c.tn)) / 2 if c.tp + c.fn and c.fp + c.tn else None,
        "the truth has one class only",
    ),
}


def reason_undefined(name: str, confusion: Confusion) -> str:
    """Return the reason why a count metric has no value over these counts."""
    return COUNT_METRICS[name].reason if confusion.total else NO_LABELS


def binomial(rng: Random, n: int, p: float) -> int:
    """Successes in `n` trials of probability `p`.

    A trial succeeds if a uniform number lies below p. Both are compared one binary digit at a time, for all
    trials at once; each digit decides half of them.
    """
    variance = n * p * (1 - p)
    if variance > _NORMAL_FROM:
        return round(rng.gauss(n * p, sqrt(variance)))
    if p >= 1:
        return n
    successes = 0
    while n and p:
        p += p
        zeros = rng.getrandbits(n).bit_count()
        if p >= 1:
            p -= 1
            successes += zeros
            n -= zeros
        else:
            n = zeros
    return successes


def resample(rng: Random, counts: Confusion, times: int) -> Iterator[Confusion]:
    """Counts of `times` resamples of the same rows, each of the same total; none if there are no rows."""
    total, positives, negatives = counts.total, counts.tp + counts.fn, counts.fp + counts.tn
    if not total:
        return
    for _ in range(times):
        unsafe = binomial(rng, total, positives / total)
        tp = binomial(rng, unsafe, counts.tp / positives) if positives else 0
        fp = binomial(rng, total - unsafe, counts.fp / negatives) if negatives else 0
        yield Confusion(tp, unsafe - tp, fp, total - unsafe - fp)


def percentiles(values: Sequence[float | None], level: float) -> tuple[float, float] | None:
    """The central `level` of the replicates.

    None where the slice is too small for an interval: more than one replicate in twenty is undefined, or all are
    equal (9 right of 9 says little, yet every resample of it is 9 of 9).
    """
    defined = sorted(value for value in values if value is not None)
    if not defined or len(defined) < 0.95 * len(values):
        return None
    if defined[0] == defined[-1]:
        return None
    tail = (1 - level) / 2
    return defined[int(tail * len(defined))], defined[ceil((1 - tail) * len(defined)) - 1]
