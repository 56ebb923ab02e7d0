"""Thresholds of a cascade's stage: never wrong more often than asked, and never less settled for a larger target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.metrics.thresholds import Scored, Side, fit_thresholds

scores = st.integers(0, 20).map(lambda twentieth: twentieth / 20)  # coarse, so that scores tie
labelled = st.lists(st.builds(Scored, scores, st.booleans()), max_size=60)
targets = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9])


@given(labelled, targets)
def test_what_thresholds_settle_is_wrong_no_more_often_than_asked(rows: list[Scored], target: float) -> None:
    fitted = fit_thresholds(rows, target)

    below = [row for row in rows if row.p_unsafe <= fitted.sure_below]
    above = [row for row in rows if row.p_unsafe >= fitted.sure_above]
    assert fitted.below == Side(len(below), sum(not row.right for row in below))
    assert fitted.above == Side(len(above), sum(not row.right for row in above))
    for side in (fitted.below, fitted.above):
        assert side.wrong <= target * side.items
    assert fitted.sure_below < 0.5 <= fitted.sure_above


@given(labelled, targets, targets)
def test_a_larger_target_never_settles_less(rows: list[Scored], one: float, other: float) -> None:
    strict, loose = (fit_thresholds(rows, target) for target in sorted((one, other)))

    assert strict.sure_below <= loose.sure_below
    assert strict.sure_above >= loose.sure_above


@given(labelled, targets)
def test_no_wider_thresholds_would_do(rows: list[Scored], target: float) -> None:
    fitted = fit_thresholds(rows, target)

    for wider in {row.p_unsafe for row in rows if fitted.sure_below < row.p_unsafe < 0.5}:
        settled = [row.right for row in rows if row.p_unsafe <= wider]
        assert settled.count(False) > target * len(settled)
    for wider in {row.p_unsafe for row in rows if 0.5 <= row.p_unsafe < fitted.sure_above}:
        settled = [row.right for row in rows if row.p_unsafe >= wider]
        assert settled.count(False) > target * len(settled)


@given(labelled, targets)
def test_the_order_of_the_rows_says_nothing(rows: list[Scored], target: float) -> None:
    assert fit_thresholds(rows[::-1], target) == fit_thresholds(rows, target)


def test_where_nothing_is_sure_enough_nothing_is_settled() -> None:
    fitted = fit_thresholds([Scored(0.1, right=False), Scored(0.9, right=False)], 0.1)

    assert (fitted.sure_below, fitted.sure_above, fitted.settled_share) == (-1.0, 2.0, 0.0)
    assert fitted.below.error is None
    assert fit_thresholds([], 0.1).settled_share is None


def test_an_error_comes_with_wilsons_interval() -> None:
    assert Side(100, 2).error_interval == pytest.approx((0.00550, 0.07001), abs=1e-5)
    assert Side().error_interval is None
