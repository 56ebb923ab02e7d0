from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.metrics.scores import Calibration, Ranking, RankSums, ScoreSums, auroc_interval, calibration
from tests.unit.infra.metrics.in_memory import calibration_in_memory, ranking_in_memory

scores = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), min_size=1, max_size=25)


def ranking(unsafe: Sequence[float], safe: Sequence[float]) -> Ranking | None:
    sums = RankSums()
    for score, is_unsafe in sorted([*((p, True) for p in unsafe), *((p, False) for p in safe)], reverse=True):
        sums.add(score, unsafe=is_unsafe)
    return sums.ranking()


def calibrated(unsafe: Sequence[float], safe: Sequence[float]) -> Calibration | None:
    """From two sums each, as if the rows came from two cells."""
    parts = [(ScoreSums(unsafe=True), ScoreSums(unsafe=False)) for _ in range(2)]
    for truth, scores_of in enumerate((unsafe, safe)):
        for number, score in enumerate(scores_of):
            parts[number % 2][truth].add(score)
    return calibration(
        ScoreSums.merged((part[0] for part in parts), unsafe=True),
        ScoreSums.merged((part[1] for part in parts), unsafe=False),
    )


many = st.integers(0, 3_000).flatmap(lambda seed: st.just([Random(f"{seed}/{n}").random() for n in range(3_000)]))


@pytest.mark.slow
@given(scores | many, scores | many)
def test_streamed_and_in_memory_give_the_same_digits(unsafe: list[float], safe: list[float]) -> None:
    assert ranking(unsafe, safe) == ranking_in_memory(sorted(unsafe), sorted(safe))
    assert calibrated(unsafe, safe) == calibration_in_memory(sorted(unsafe), sorted(safe))


def test_rows_out_of_order_are_refused_rather_than_ranked_wrongly() -> None:
    sums = RankSums()
    sums.add(0.5, unsafe=True)

    with pytest.raises(ValueError, match="not in the order"):
        sums.add(0.6, unsafe=False)


def win(unsafe: float, safe: float) -> float:
    return 1.0 if unsafe > safe else 0.5 if unsafe == safe else 0.0


def variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


@given(scores, scores)
def test_auroc_is_the_chance_that_an_unsafe_row_is_above_a_safe_one(unsafe: list[float], safe: list[float]) -> None:
    pairs = [win(u, s) for u in unsafe for s in safe]

    assert ranking(sorted(unsafe), sorted(safe)).auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@given(scores, scores)
def test_average_precision_steps_through_the_distinct_thresholds(unsafe: list[float], safe: list[float]) -> None:
    expected, recall = 0.0, 0.0
    for threshold in sorted({*unsafe, *safe}, reverse=True):
        hits = sum(score >= threshold for score in unsafe)
        said = hits + sum(score >= threshold for score in safe)
        expected += (hits / len(unsafe) - recall) * hits / said
        recall = hits / len(unsafe)

    assert ranking(sorted(unsafe), sorted(safe)).average_precision == pytest.approx(expected, abs=1e-12)


@given(scores, scores)
def test_the_variance_of_auroc_is_delongs(unsafe: list[float], safe: list[float]) -> None:
    measured = ranking(sorted(unsafe), sorted(safe)).variance
    if len(unsafe) < 2 or len(safe) < 2:
        assert measured is None
        return
    of_unsafe = [sum(win(u, s) for s in safe) / len(safe) for u in unsafe]
    of_safe = [sum(win(u, s) for u in unsafe) / len(unsafe) for s in safe]

    expected = variance(of_unsafe) / len(unsafe) + variance(of_safe) / len(safe)

    assert measured == pytest.approx(expected, abs=1e-12)


@given(scores, scores)
def test_ece_and_brier_follow_their_definitions(unsafe: list[float], safe: list[float]) -> None:
    rows = [(p, 1) for p in unsafe] + [(p, 0) for p in safe]
    bins = {}
    for p, truth in rows:
        number = max((k for k in range(15) if k / 15 <= p), default=0)
        bins.setdefault(number, []).append((p, truth))
    gaps = [abs(sum(p for p, _ in part) - sum(t for _, t in part)) for part in bins.values()]

    measured = calibrated(unsafe, safe)

    assert measured.ece == pytest.approx(sum(gaps) / len(rows), abs=1e-12)
    assert measured.brier == pytest.approx(sum((p - t) ** 2 for p, t in rows) / len(rows), abs=1e-12)


@pytest.mark.parametrize(("unsafe", "safe"), [([0.5], []), ([], [0.5]), ([], [])])
def test_one_class_alone_cannot_be_ranked(unsafe: list[float], safe: list[float]) -> None:
    assert ranking(unsafe, safe) is None


def test_a_perfect_guard_is_calibrated_and_ranks_all() -> None:
    assert ranking([1.0, 1.0], [0.0, 0.0])[:2] == (1, 1)
    assert calibrated([1.0, 1.0], [0.0, 0.0]) == (0, 0)


def test_a_score_that_is_the_same_for_all_ranks_as_chance() -> None:
    assert ranking([0.5] * 3, [0.5] * 5).auroc == 0.5


def test_the_interval_of_auroc_stays_inside_zero_and_one() -> None:
    low, high = auroc_interval(0.99, 0.01, 0.95)

    assert 0 < low < 0.99 < high < 1


@pytest.mark.parametrize("auroc", [0.0, 1.0])
def test_a_perfect_auroc_has_no_interval_rather_than_an_empty_one(auroc: float) -> None:
    assert auroc_interval(auroc, 0.0, 0.95) is None
