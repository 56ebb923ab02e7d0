"""Declarations keep Prometheus' customs, and what a tally counts is what is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.coordination import counters as telemetry
from infra.coordination.counters import SUM, Kind, Metric, Tally, read_counts

DECLARED = (*telemetry.FLEET, *telemetry.GATEWAY)


@pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric.name)
def test_a_declaration_keeps_prometheus_customs_and_has_no_label_that_names_an_item(metric: Metric) -> None:
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help
    assert not metric.help.endswith(".")
    assert not {"item", "run", "key", "text", "le"} & set(metric.labels)


def test_each_name_is_declared_once() -> None:
    assert len({metric.name for metric in DECLARED}) == len(DECLARED)


@given(counts=st.lists(st.tuples(st.sampled_from(["g", 'a "guard"', "護"]), st.integers(1, 10**9)), max_size=20))
def test_what_is_counted_is_read_as_the_sum_by_series(counts: list[tuple[str, int]]) -> None:
    tally = Tally()
    for guard, by in counts:
        tally.add(telemetry.ITEMS_CACHED, guard, "live", by=by)

    read = {labels: count for _, labels, count in read_counts({k: repr(v) for k, v in tally.fields().items()})}

    assert read == {
        (guard, "live"): sum(by for other, by in counts if other == guard) for guard in {guard for guard, _ in counts}
    }


def test_an_observation_counts_in_the_first_bucket_that_holds_it() -> None:
    tally = Tally()
    last = len(telemetry.STAGE.buckets)
    for value in (telemetry.STAGE.buckets[1], telemetry.STAGE.buckets[-1] + 1):
        tally.observe(telemetry.STAGE, value, "g", "live", "queue")

    read = {labels[-1]: count for _, labels, count in read_counts({k: repr(v) for k, v in tally.fields().items()})}

    assert read == {"1": 1, str(last): 1, SUM: telemetry.STAGE.buckets[1] + telemetry.STAGE.buckets[-1] + 1}


def test_nothing_counted_leaves_no_field_and_what_another_version_counts_is_left_out() -> None:
    tally = Tally()
    tally.add(telemetry.DUPLICATES, "g", "live", by=0)

    assert tally.fields() == {}
    assert list(read_counts({'["libra_gone_total", "g"]': "1", '["libra_items_cached_total", "g"]': "1"})) == []
