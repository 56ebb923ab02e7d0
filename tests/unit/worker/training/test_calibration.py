"""A fitted temperature makes truth likelier and changes neither a label nor the order of the scores."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.training.calibration import COLDEST, HOTTEST, fit_temperature, mean_nll, p_unsafe

margins = st.floats(-40, 40).map(lambda margin: round(margin, 6))  # 1e-16 divided by 2 is a probability of 0.5
rows = st.lists(st.tuples(margins, st.booleans()), min_size=2).filter(
    lambda found: len({truth for _, truth in found}) == 2
)


@given(rows)
def test_the_likelihood_never_gets_worse_and_no_other_temperature_is_better(found: list[tuple[float, bool]]) -> None:
    values, unsafe = [margin for margin, _ in found], [truth for _, truth in found]
    fit = fit_temperature(values, unsafe)
    assert COLDEST <= fit.temperature <= HOTTEST
    assert fit.nll_after <= fit.nll_before
    assert fit.nll_after == pytest.approx(mean_nll(values, unsafe, fit.temperature))
    for other in (COLDEST, 0.1, 0.5, 0.9 * fit.temperature, 1.1 * fit.temperature, 2.0, 5.0, HOTTEST):
        if COLDEST <= other <= HOTTEST:
            assert fit.nll_after <= mean_nll(values, unsafe, other) + 1e-9


@given(st.lists(margins, min_size=2), st.floats(COLDEST, HOTTEST))
def test_the_label_at_one_half_and_the_order_stay(values: list[float], temperature: float) -> None:
    plain, soft = ([p_unsafe(value, at) for value in values] for at in (1.0, temperature))
    assert [p > 0.5 for p in plain] == [p > 0.5 for p in soft]
    ascending = [soft[at] for at in sorted(range(len(values)), key=lambda at: values[at])]
    assert ascending == sorted(ascending)


def test_a_temperature_that_was_put_in_is_found_again() -> None:
    rng = random.Random(1)
    true = [rng.gauss(0, 2) for _ in range(20_000)]
    unsafe = [rng.random() < p_unsafe(logit) for logit in true]
    assert fit_temperature([3 * logit for logit in true], unsafe).temperature == pytest.approx(3, rel=0.05)


def test_what_cannot_be_fitted_is_refused() -> None:
    for values, unsafe in (([], []), ([1.0], [True]), ([1.0, 2.0], [True]), ([1.0, float("nan")], [True, False])):
        with pytest.raises(ValueError, match=r"one class|needed|finite"):
            fit_temperature(values, unsafe)
