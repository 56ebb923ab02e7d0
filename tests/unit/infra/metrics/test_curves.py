"""Curves, bins and sweep say the same as the metrics that stand beside them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.metrics import Judged, measure
from infra.metrics.counts import COUNT_METRICS
from infra.metrics.curves import MAX_POINTS, THRESHOLDS, trace
from tests.unit.infra.metrics.build import find, judged, stream

scores = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.70, 0.9, 1.0])
truths = st.sampled_from(["safe", "unsafe"])


@st.composite
def runs(draw: st.DrawFn) -> list[Judged]:
    """Rows of a guard that calls unsafe what reaches one half, some of them without a label, highest first."""
    scored = draw(st.lists(st.tuples(truths, scores), max_size=60))
    lost = draw(st.lists(truths, max_size=5))
    rows = [judged(truth, "unsafe" if p >= 0.5 else "safe", p) for truth, p in scored]
    return sorted(rows, key=lambda row: -(row.p_unsafe or 0)) + [judged(truth) for truth in lost]


@given(runs())
def test_the_area_under_the_roc_curve_is_the_reported_auroc(rows: list[Judged]) -> None:
    auroc = find(measure(rows, resamples=0), "all").metric("auroc")
    curve = trace(rows).whole
    assert auroc is not None
    if curve is None:
        assert auroc.value is None
        return
    across, up = curve.roc()
    area = sum((x - w) * (y + v) / 2 for w, x, v, y in zip(across, across[1:], up, up[1:], strict=False))
    assert area == pytest.approx(auroc.value)


@given(runs())
def test_the_sweep_at_the_guards_own_threshold_is_the_reported_accuracy(rows: list[Judged]) -> None:
    traced, group = trace(rows), find(measure(rows, resamples=0), "all")
    if traced.sweep:
        at_half = traced.sweep[THRESHOLDS.index(0.5)]
        assert COUNT_METRICS["accuracy"].formula(at_half) == pytest.approx(group.value("accuracy"))
        assert sum(traced.sweep[0]) == sum(at_half) == len(rows)


@given(runs())
def test_the_bins_hold_every_scored_row_and_give_the_reported_ece(rows: list[Judged]) -> None:
    bins, ece = trace(rows).bins, find(measure(rows, resamples=0), "all").value("ece")
    held = sum(part.safe + part.unsafe for part in bins)

    assert held == sum(row.p_unsafe is not None for row in rows)
    if ece is not None:
        gaps = [
            (part.safe + part.unsafe) * abs(part.mean - part.share_unsafe)
            for part in bins
            if part.mean is not None and part.share_unsafe is not None
        ]
        assert sum(gaps) / held == pytest.approx(ece)


def test_a_long_run_keeps_few_points_that_lie_on_its_curve_and_ends_with_all_rows() -> None:
    rows = list(stream(20_000))
    curve = trace(rows, ["s1"]).whole
    assert curve is not None
    places = {(0, 0)}
    found = accused = 0
    for row in rows:
        found += row.truth == "unsafe"
        accused += row.truth == "safe"
        places.add((found, accused))

    assert MAX_POINTS / 2 <= len(curve.found) <= MAX_POINTS + 1
    assert places.issuperset(zip(curve.found, curve.accused, strict=True))
    assert (curve.found[-1], curve.accused[-1]) == (found, accused)
    assert list(trace(rows, ["s1"]).by_source) == ["s1"]


def test_rows_without_truth_or_out_of_order_are_not_drawn() -> None:
    assert trace([judged(None, "safe", 0.3)]).sweep == ()
    with pytest.raises(ValueError, match="order"):
        trace([judged("safe", "safe", 0.1), judged("unsafe", "unsafe", 0.9)])
