"""Two guards over the same items: by how much one is better, and how likely that is chance.

Only the items that both judged are compared, each with itself. Per source all that is kept is how many were right by
both, by one, by the other or by neither, for either truth: the metrics of both sides follow from these counts, and so
does every resample of the pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import comb, erfc, fsum, sqrt
from random import Random
from typing import Final, NamedTuple

from infra.metrics.counts import COUNT_METRICS, Confusion, binomial, percentiles
from schemas.items import Label
from schemas.runs import Interval

LEVEL: Final = 0.95
RESAMPLES: Final = 1_000
EXACT_UP_TO: Final = 1_000
"""Disagreements up to which McNemar's test is the exact binomial one."""


class Cell(NamedTuple):
    """A kind of pair: the truth, and who was right."""

    truth: Label
    first_right: bool
    second_right: bool


_CELLS: Final = tuple(Cell(truth, one, two) for truth in Label for one in (True, False) for two in (True, False))

Pairs = Mapping[str, Mapping[Cell, int]]
"""The number of pairs of each kind, by source."""


class McNemar(NamedTuple):
    """Items that only one side judged rightly, and the chance of so uneven a split between equals."""

    first_only: int
    second_only: int
    p_value: float
    exact: bool


class Difference(NamedTuple):
    """A metric's average over sources on either side, and second minus first with its interval.

    All are absent where the metric is undefined for one of the sources.
    """

    metric: str
    first: float | None
    second: float | None
    difference: float | None
    interval: Interval | None


def count_pairs(rows: Iterable[tuple[str, Label, Label | None, Label | None]]) -> dict[str, Counter[Cell]]:
    """Pairs from (source, truth, first label, second label), by the benchmark's rule: no label is a wrong one."""
    pairs: dict[str, Counter[Cell]] = {}
    for source, truth, first, second in rows:
        pairs.setdefault(source, Counter())[Cell(truth, first == truth, second == truth)] += 1
    return pairs


def mcnemar(pairs: Pairs) -> McNemar:
    """McNemar's test over all sources (McNemar 1947).

    Two-sided and exact, a binomial of chance 1/2, up to `EXACT_UP_TO` disagreements; above, chi-square of one degree
    of freedom with Edwards' correction for continuity.
    """
    counts = [(cell, count) for cells in pairs.values() for cell, count in cells.items()]
    first_only = sum(count for cell, count in counts if cell.first_right and not cell.second_right)
    second_only = sum(count for cell, count in counts if cell.second_right and not cell.first_right)
    total = first_only + second_only
    if total > EXACT_UP_TO:
        chi_square = (abs(first_only - second_only) - 1) ** 2 / total
        return McNemar(first_only, second_only, erfc(sqrt(chi_square / 2)), exact=False)
    tail = sum(comb(total, count) for count in range(min(first_only, second_only) + 1))
    return McNemar(first_only, second_only, min(1.0, 2 * tail / 2**total), exact=True)


def differences(
    pairs: Pairs, metrics: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Difference, ...]:
    """Second minus first of some averages over sources, with percentile intervals of the paired bootstrap.

    The pairs of each source are resampled apart, as they were collected; drawing pairs and counting them is one draw
    from a multinomial over their kinds. Equal pairs and an equal seed give equal differences.
    """
    rng = Random(seed)  # noqa: S311  statistics, not secrets
    sources = [[cells.get(cell, 0) for cell in _CELLS] for _, cells in sorted(pairs.items())]
    draws = [[_resampled(rng, counts) for counts in sources] for _ in range(resamples)]
    found = []
    for metric in metrics:
        first, second = (_average(metric, sources, first=side) for side in (True, False))
        if first is None or second is None:
            found.append(Difference(metric, first, second, None, None))
            continue
        replicates = []
        for draw in draws:
            one, two = (_average(metric, draw, first=side) for side in (True, False))
            replicates.append(None if one is None or two is None else two - one)
        bounds = percentiles(replicates, LEVEL)
        interval = Interval(low=bounds[0], high=bounds[1], level=LEVEL) if bounds else None
        found.append(Difference(metric, first, second, second - first, interval))
    return tuple(found)


def _resampled(rng: Random, counts: Sequence[int]) -> list[int]:
    """As many pairs, drawn with replacement: kind after kind, each from what the former left over."""
    left, weight = sum(counts), sum(counts)
    drawn = []
    for count in counts:
        taken = binomial(rng, left, count / weight) if left and count else 0
        drawn.append(min(left, max(0, taken)))
        left, weight = left - drawn[-1], weight - count
    return drawn


def _average(metric: str, sources: Sequence[Sequence[int]], *, first: bool) -> float | None:
    """The average over sources of one side's metric, from the pairs of each kind; undefined where it is for one."""
    values = []
    for counts in sources:
        found: Counter[tuple[Label, bool]] = Counter()
        for cell, count in zip(_CELLS, counts, strict=True):
            found[cell.truth, cell.first_right if first else cell.second_right] += count
        tp, fn = found[Label.UNSAFE, True], found[Label.UNSAFE, False]
        fp, tn = found[Label.SAFE, False], found[Label.SAFE, True]
        values.append(COUNT_METRICS[metric].formula(Confusion(tp, fn, fp, tn)))
    defined = [value for value in values if value is not None]
    return fsum(defined) / len(defined) if defined and len(defined) == len(values) else None
