"""Paired comparison: exact where numbers are small, and honest about chance."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from infra.metrics.paired import Cell, count_pairs, differences, mcnemar
from schemas.items import Label

SAFE, UNSAFE = Label.SAFE, Label.UNSAFE


def pairs_of(first_only: int, second_only: int, both: int = 50) -> dict[str, Counter[Cell]]:
    cells = Counter({Cell(UNSAFE, True, False): first_only, Cell(UNSAFE, False, True): second_only})
    cells[Cell(SAFE, True, True)] = both
    return {"s": cells}


@pytest.mark.parametrize(
    ("first_only", "second_only", "p_value"),
    [(0, 0, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (5, 5, 1.0), (10, 2, 0.03857421875)],
)
def test_mcnemar_is_the_two_sided_binomial_test_for_small_counts(
    first_only: int, second_only: int, p_value: float
) -> None:
    test = mcnemar(pairs_of(first_only, second_only))

    assert (test.first_only, test.second_only, test.exact) == (first_only, second_only, True)
    assert test.p_value == pytest.approx(p_value, abs=1e-12)


def test_for_large_counts_the_approximation_takes_over_without_a_step() -> None:
    exact, approximate = mcnemar(pairs_of(470, 530)), mcnemar(pairs_of(471, 531))

    assert (exact.exact, approximate.exact) == (True, False)
    assert exact.p_value == pytest.approx(approximate.p_value, abs=0.002)


def test_no_label_counts_as_a_wrong_one() -> None:
    assert count_pairs([("s", UNSAFE, None, UNSAFE), ("s", SAFE, SAFE, None)]) == {
        "s": Counter({Cell(UNSAFE, False, True): 1, Cell(SAFE, True, False): 1})
    }


def test_the_difference_is_second_minus_first_averaged_over_sources() -> None:
    better = {Cell(UNSAFE, False, True): 20, Cell(UNSAFE, True, True): 40, Cell(SAFE, True, True): 40}
    equal = {Cell(UNSAFE, True, True): 5, Cell(SAFE, False, False): 5}

    (one,) = differences({"a": better, "b": equal}, ["accuracy"], seed=1)

    assert (one.first, one.second, one.difference) == pytest.approx((0.65, 0.75, 0.1))
    assert one.interval is not None
    assert 0 < one.interval.low < 0.1 < one.interval.high
    assert differences({"a": better, "b": equal}, ["accuracy"], seed=1) == (one,)


def test_an_undefined_metric_has_no_difference() -> None:
    (one,) = differences({"a": {Cell(SAFE, True, True): 3}}, ["f1_unsafe"])

    assert (one.first, one.difference, one.interval) == (None, None, None)


def test_the_interval_is_that_of_resampled_pairs() -> None:
    """Against the plain form: draw whole pairs with replacement, count, subtract."""
    cells = {Cell(UNSAFE, True, False): 12, Cell(UNSAFE, False, True): 30, Cell(SAFE, True, True): 158}
    (one,) = differences({"a": cells}, ["accuracy"], resamples=2_000)
    rng, population = random.Random(3), [cell for cell, count in cells.items() for _ in range(count)]
    plain = sorted(
        sum(cell.second_right - cell.first_right for cell in rng.choices(population, k=200)) / 200 for _ in range(2_000)
    )

    assert one.interval is not None
    assert (one.interval.low, one.interval.high) == pytest.approx((plain[50], plain[1949]), abs=0.011)
