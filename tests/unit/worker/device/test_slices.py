"""The cut of bulk batches beside live traffic, on devices that are a formula: t = a + b·n."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.device.slices import BatchTimes

SLICE_S = 0.020
MODELS = {"0.5B": (0.016, 2.7e-6, 32_768), "7B": (0.022, 25.7e-6, 8_192), "14B": (0.034, 52e-6, 4_096)}
"""Launch and seconds a token of an H200 by estimate, and the budget found for it."""
LIVE_TOKENS = 156


def cuts(a: float, b: float, budget: int, *, overlaps: bool, rounds: int = 200) -> list[int]:
    """The cuts while a live batch comes between any two bulk batches, after some full ones."""
    times = BatchTimes()
    launch_s = a if overlaps else 0.0

    def took(tokens: int) -> float:
        return b * tokens if overlaps else a + b * tokens

    for _ in range(5):
        times.note(budget, took(budget), launch_s)
    found = []
    for _ in range(rounds):
        times.note(LIVE_TOKENS, a + b * LIVE_TOKENS, launch_s)
        # The bulk batches that ran meanwhile were cut, and are not learned from.
        found.append(min(budget, max(times.slice_tokens(SLICE_S, overlaps=overlaps), budget // 16)))
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_cut_does_not_make_the_next_cut_shorter(model: str) -> None:
    a, b, budget = MODELS[model]

    found = cuts(a, b, budget, overlaps=False)

    assert found[-1] == found[0]
    # Two thirds of the slice are the tokens' own time at least.
    assert b * found[-1] >= 0.66 * (a + b * found[-1])


@pytest.mark.parametrize("model", MODELS)
def test_where_batches_overlap_a_slice_lasts_longer_than_a_launch_so_that_the_device_never_waits_for_one(
    model: str,
) -> None:
    a, b, budget = MODELS[model]

    tokens = cuts(a, b, budget, overlaps=True)[-1]

    assert tokens < budget
    assert b * tokens >= 1.2 * a
    # A live item is launched while the batch before it runs, and waits for one more at most, then runs.
    assert 2 * b * tokens + b * LIVE_TOKENS <= 3 * (a + b * LIVE_TOKENS)


@given(a=st.floats(0, 0.1), b=st.floats(1e-7, 1e-3), small=st.integers(1, 400), large=st.integers(2_000, 50_000))
def test_both_parts_are_learned_from_a_small_and_a_large_batch(a: float, b: float, small: int, large: int) -> None:
    times = BatchTimes()
    for tokens in (large, small, large + 7, small):
        times.note(tokens, a + b * tokens)

    assert times.line() == pytest.approx((a, b), rel=0.05, abs=1e-4)
    assert times.expected_s(1_000) == pytest.approx(a + b * 1_000, rel=0.05, abs=1e-3)


def test_before_the_first_batch_nothing_is_known() -> None:
    assert BatchTimes().slice_tokens(SLICE_S, overlaps=False) == 0
    assert BatchTimes().expected_s(100) == 0


def test_batches_that_grow_become_the_new_large_point() -> None:
    times = BatchTimes()
    times.note(100, 0.011)
    times.note(10_000, 1.001)

    assert times.line() == pytest.approx((0.001, 0.0001), rel=0.02)


def test_sizes_that_drift_together_are_one_point_and_no_steep_line() -> None:
    times = BatchTimes()
    for tokens, seconds in [(1_000, 1.0), (450, 0.5), *[(600, 0.7)] * 40, *[(450, 0.55)] * 400]:
        times.note(tokens, seconds)

    assert times.expected_s(450) == pytest.approx(0.55)


def test_a_batch_that_ended_before_it_was_looked_at_teaches_no_time_and_makes_the_next_look_sooner() -> None:
    times = BatchTimes()
    times.note(1_000, 1.0)

    times.note_late()
    times.note_late()

    assert (times.expected_s(1_000), times.look_after_s(1_000)) == (1.0, 0.25)

    for _ in range(20):
        times.note(1_000, 1.0)

    assert times.look_after_s(1_000) == 1.0
