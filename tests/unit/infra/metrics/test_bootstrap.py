from collections.abc import Sequence
from math import comb, sqrt
from random import Random

import pytest

from infra.metrics.counts import Confusion, binomial, percentiles, resample


@pytest.mark.parametrize("p", [0.1, 0.5, 0.67])
def test_binomial_draws_have_the_binomial_distribution(p: float) -> None:
    """Chi-square over 9 cells below its 99.99 % quantile (31.8); the seed is fixed, so this never flickers."""
    rng, draws, n = Random(1), 20_000, 8
    seen = [0] * (n + 1)
    for _ in range(draws):
        seen[binomial(rng, n, p)] += 1

    expected = [draws * comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    chi_square = sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True))

    assert chi_square < 31.8


@pytest.mark.parametrize("n", [400, 450, 1_000_000], ids=["by digits", "just normal", "normal"])
def test_many_trials_have_the_binomial_mean_and_spread(n: int) -> None:
    rng, draws, p = Random(2), 4000, 0.6
    values = [binomial(rng, n, p) for _ in range(draws)]
    mean = sum(values) / draws
    spread = sqrt(sum((value - mean) ** 2 for value in values) / draws)

    assert abs(mean - n * p) < 4 * sqrt(n * p * (1 - p) / draws)
    assert spread == pytest.approx(sqrt(n * p * (1 - p)), rel=0.05)


@pytest.mark.parametrize(("n", "p", "expected"), [(9, 0.0, 0), (9, 1.0, 9), (0, 0.5, 0), (99_999, 1.0, 99_999)])
def test_certain_draws_are_certain(n: int, p: float, expected: int) -> None:
    assert binomial(Random(3), n, p) == expected


def test_a_resample_keeps_the_total_and_the_empty_cells() -> None:
    for drawn in resample(Random(4), Confusion(tp=5, fn=0, fp=2, tn=3), 200):
        assert drawn.total == 10
        assert drawn.fn == 0


def test_resampling_counts_agrees_with_resampling_rows() -> None:
    counts = Confusion(tp=60, fn=20, fp=10, tn=40)
    rows = [kind for kind, count in enumerate(counts) for _ in range(count)]
    rng = Random(5)

    def f1(c: Sequence[int]) -> float:
        return 2 * c[0] / (2 * c[0] + c[1] + c[2])

    by_rows = []
    for _ in range(4000):
        drawn = rng.choices(rows, k=len(rows))
        by_rows.append(f1([drawn.count(kind) for kind in range(4)]))
    low, high = percentiles([f1(c) for c in resample(rng, counts, 4000)], 0.95)

    assert (low, high) == pytest.approx(percentiles(by_rows, 0.95), abs=0.006)


def test_an_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng, covered, trials = Random(6), 0, 300
    for _ in range(trials):
        right = binomial(rng, 400, 0.8)
        counts = Confusion(tp=right, fn=400 - right)
        low, high = percentiles([c.tp / 400 for c in resample(rng, counts, 400)], 0.95)
        covered += low <= 0.8 <= high

    assert 0.91 <= covered / trials <= 0.98


@pytest.mark.parametrize("values", [[], [None, None], [0.5] * 10, [0.1, 0.2] * 9 + [None] * 2])
def test_too_little_to_go_by_gives_no_interval(values: list[float | None]) -> None:
    assert percentiles(values, 0.95) is None


def test_percentiles_cut_an_equal_tail_off_both_ends() -> None:
    assert percentiles([float(k) for k in range(1000)], 0.95) == (25, 974)
