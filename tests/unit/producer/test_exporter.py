"""A page as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infra.coordination import counters as telemetry
from infra.coordination.counters import Tally
from producer.exporter import Page


def _samples(page: Page) -> dict[tuple[str, ...], float]:
    """Values by name and label values, these in order of the alphabet."""
    families = text_string_to_metric_families(generate_latest(page).decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
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

    bounds = ("0.005", "0.02", "0.05", "600.0", "+Inf")
    assert [told["libra_stage_seconds_bucket", bound, "bulk", "device", "g"] for bound in bounds] == [1, 1, 3, 3, 4]
    assert told["libra_stage_seconds_count", "bulk", "device", "g"] == 4
    assert told["libra_stage_seconds_sum", "bulk", "device", "g"] == 10_000.061


def test_a_series_begins_at_zero_and_a_count_is_not_overwritten_by_it() -> None:
    tally = Tally()
    tally.add(telemetry.DUPLICATES, "g", "bulk", by=3)
    page = Page()
    page.count(_counted(tally))
    for lane in ("live", "bulk"):
        page.zero(telemetry.DUPLICATES, "g", lane)

    name = "libra_duplicates_suppressed_total"
    assert _samples(page) == {(name, "bulk", "g"): 3, (name, "g", "live"): 0}
