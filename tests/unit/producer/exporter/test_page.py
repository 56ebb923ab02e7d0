"""A page as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infra import telemetry
from infra.telemetry import Tally
from producer.exporter.page import Page


def _samples(page: Page) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(generate_latest(page).decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def _counted(tally: Tally) -> dict[str, str]:
    return {field: repr(count) for field, count in tally.fields().items()}


def test_a_histogram_is_told_with_each_bucket_holding_those_below_it() -> None:
    tally = Tally()
    for seconds in (0.001, 0.03, 0.03, 10_000.0):
        tally.observe(telemetry.STAGE, seconds, "g", "bulk", "device")
    page = Page()
    page.count(_counted(tally))
    told = _samples(page)

    buckets = {labels[-1]: value for (name, labels), value in told.items() if name.endswith("_bucket")}
    assert (buckets["0.005"], buckets["0.02"], buckets["0.05"], buckets["600.0"], buckets["+Inf"]) == (1, 1, 3, 3, 4)
    assert told["libra_stage_seconds_count", ("g", "bulk", "device")] == 4
    assert told["libra_stage_seconds_sum", ("g", "bulk", "device")] == 10_000.061


def test_a_series_begins_at_zero_and_a_count_is_not_overwritten_by_it() -> None:
    tally = Tally()
    tally.add(telemetry.DUPLICATES, "g", "bulk", by=3)
    page = Page()
    page.count(_counted(tally))
    for lane in ("live", "bulk"):
        page.zero(telemetry.DUPLICATES, "g", lane)

    name = "libra_duplicates_suppressed_total"
    assert _samples(page) == {(name, ("g", "bulk")): 3, (name, ("g", "live")): 0}
