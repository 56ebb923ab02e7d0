"""Bootstrap intervals for count metrics, by resampling the counts instead of the rows.

Drawing n rows with replacement and counting them is the same as one draw from a multinomial over the four
counts, so this is the ordinary percentile bootstrap (Efron), at a cost that does not need numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from random import Random
from typing import Final

from infra.metrics.counts import Confusion

_NORMAL_FROM: Final = 100.0
"""Variance, in rows squared, from which a draw is a rounded normal one. It moves the ends of a 95 % interval by
less than half a row, (1 - 2p)(z^2 - 1)/6; the noise that 1,000 resamples leave in them is twice that."""


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
