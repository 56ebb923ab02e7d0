import io
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from infra.metrics import Judged, measure
from producer.report.terminal import render
from schemas.runs import (
    Against,
    CascadeShares,
    Cost,
    Interval,
    InvalidRow,
    RunCounts,
    RunReport,
    RunSpec,
    RunState,
    StageShare,
    Throughput,
)
from tests.unit.infra.metrics.build import judged, rows_of
from tests.unit.infra.metrics.reference import LIBRA_14B, PUBLISHED_14B

GOLDEN = measure(
    [row._replace(category="隐私财产") for name, counts in LIBRA_14B.items() for row in rows_of(name, counts)]
)


def report(rows: Iterable[Judged] | None = None, **changes: Any) -> RunReport:
    facts: dict[str, Any] = {
        "run_id": "run-7f3a",
        "name": "nightly",
        "state": RunState.COMPLETE,
        "spec": RunSpec(guard="libra-tiny", source="bench.jsonl"),
        "counts": RunCounts(accepted=5720, settled=5720, scored=5720, unparseable=0, dead=0, pending=0),
        "groups": GOLDEN if rows is None else measure(rows, resamples=50),
        "fingerprint": {"model": "libra-tiny", "revision": "1", "dtype": "float32", "digest": "a1b2c3d4"},
        "throughput": Throughput(seconds=7.04, items_per_s=812.5, device_p50_s=0.31, device_p95_s=1.94),
    }
    return RunReport(**(facts | changes))


def text(report: RunReport, *, width: int = 80, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system="truecolor" if terminal else "auto"
    )
    render(report, console)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def line(output: str, start: str) -> str:
    return next(found for found in output.splitlines() if found.strip().startswith(start))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("source", PUBLISHED_14B)
def test_the_headline_shows_the_published_digits(width: int, source: str) -> None:
    f1_unsafe, f1_safe, accuracy = PUBLISHED_14B[source]

    shown = [cell for cell in line(text(report(), width=width), source).split() if len(cell) == 6 and cell[1] == "."]

    assert shown[:3] == [accuracy, f1_safe, f1_unsafe]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_constant_baseline_stands_under_the_average(width: int) -> None:
    lines = text(report(), width=width).splitlines()
    average = next(number for number, content in enumerate(lines) if content.startswith("Average"))
    baseline = next(number for number, content in enumerate(lines) if content.startswith("constant unsafe"))

    assert baseline > average
    assert "0.6666" in lines[baseline]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut_or_wrapped_at_usual_widths(width: int) -> None:
    output = text(report(), width=width)

    assert "…" not in output
    assert all(cell_len(row) <= width for row in output.splitlines())
    assert "Translated Data 2,991" in output


def test_a_narrow_terminal_shows_intervals_under_values_and_a_wide_one_beside() -> None:
    real = next(group for group in GOLDEN if group.name == "Real Data").metric("f1_unsafe")
    assert real
    assert real.interval
    bounds = f"{real.interval.low:.3f}–{real.interval.high:.3f}".replace("0.", ".")

    narrow = text(report(), width=80)

    assert bounds in narrow
    assert bounds not in line(narrow, "Real Data")
    assert f"0.8983 {bounds}" in line(text(report(), width=120), "Real Data")


def test_the_title_says_what_ran_and_what_judged() -> None:
    output = text(report())

    assert output.startswith("nightly · libra-tiny · score · complete\nrun run-7f3a · fingerprint a1b2c3d4\n")
    assert "libra-tiny@1 · float32" in output


def test_scenarios_come_largest_first() -> None:
    rows = [judged("safe", "safe", category=name) for name in ("少", "多", "多")]
    output = text(report(rows))

    assert output.index("多") < output.index("少")


def test_without_scenarios_there_is_no_scenario_table() -> None:
    assert "Scenario" not in text(report([judged("safe", "safe")]))


def test_an_undefined_metric_is_a_dash_with_its_reason_below() -> None:
    output = text(report([judged("safe", "safe", source="A")]))

    row = line(output, "A ")
    mark = row[row.index("–") + 1]
    assert "0.0000" not in row
    assert line(output, mark) == f"{mark} no row is truly unsafe"


def test_equal_reasons_share_a_footnote() -> None:
    output = text(report([judged("safe", "safe", source="A"), judged("safe", "safe", source="B")]))

    assert output.count("no row has both p_unsafe and a human label") == 2, "for the sources, and for their average"


def test_without_truth_the_verdict_mix_is_shown_instead_of_metrics() -> None:
    output = text(report([judged(None, "unsafe")] * 1 + [judged(None, "safe")] * 3))

    assert "Accuracy" not in output
    assert "constant unsafe" not in output
    assert line(output, "All").split()[:6] == ["All", "4", "1", "25.0%", "3", "75.0%"]


@pytest.mark.parametrize("groups", [(), measure([])])
def test_a_run_without_metrics_still_has_a_report(groups: Any) -> None:
    assert "5,720 accepted" in text(report(groups=groups))


def test_losses_are_red_only_when_there_are_any() -> None:
    lost = RunCounts(accepted=10, settled=9, scored=6, unparseable=1, dead=2, pending=1)
    good = text(report(), terminal=True)
    bad = text(report(counts=lost, dead_reasons={"too long": 2}), terminal=True)

    assert "\x1b[31m" not in good
    assert "\x1b[31m2 dead" in bad
    assert "\x1b[31m1 unparseable" in bad
    assert "2 dead: too long" in bad
    assert "1 pending" in bad


def test_there_is_no_colour_when_the_output_is_not_a_terminal() -> None:
    assert "\x1b" not in text(report())


def test_throughput_shows_what_is_known() -> None:
    assert "812.5 items/s · 7.0 s · device 310 ms/1.9 s (p50/p95)\n" in text(report())
    assert "7.0 s\n" in text(report(throughput=Throughput(seconds=7.04, items_per_s=None)))


def test_invalid_rows_are_listed_and_the_rest_counted() -> None:
    rows = tuple(InvalidRow(where=f"a.jsonl:{number}", problem="the text is empty") for number in range(6))

    output = text(report(invalid_rows=rows, invalid_count=1200))

    assert "1,200 invalid rows skipped" in output
    assert "a.jsonl:4: the text is empty" in output
    assert "a.jsonl:5" not in output
    assert "… and 1,195 more" in output


def test_a_controversial_verdict_is_reported_by_both_readings() -> None:
    rows = [judged("safe", "unsafe")._replace(controversial=True), judged("unsafe", "unsafe")]

    output = text(report(rows))

    assert "0.5000" in line(output, "Average")
    assert "1.0000" in line(output, "loose reading")
    assert "loose" not in text(report(rows[1:]))


def test_many_sources_are_cut_and_the_rest_counted() -> None:
    output = text(report([judged("safe", "safe", source=f"tenant-{number:03}") for number in range(50)]))

    assert "… and 30 more sources" in output
    assert "tenant-020" not in output


@pytest.mark.parametrize("name", ["[red]x[/red]", "\x1b[31mx", "a\nb", "\u202ex", "[/]"])
def test_names_from_data_cannot_steer_the_terminal(name: str) -> None:
    rows = [judged("safe", "safe", source=name, category=name)]
    output = text(report(rows, name=name, dead_reasons={name: 1}, invalid_count=1))

    assert "\x1b" not in output
    assert "\u202e" not in output
    assert name.startswith("[") is (name in output)


@given(name=st.text(max_size=60), width=st.integers(80, 160))
@settings(max_examples=50, deadline=None)
def test_any_source_name_fits_the_width(name: str, width: int) -> None:
    output = text(report([judged("safe", "safe", source=name)]), width=width)

    assert all(cell_len(row) <= width for row in output.splitlines())


def test_answers_from_the_cache_are_said_and_no_word_is_lost_on_none() -> None:
    assert "1,234 from the cache" in text(report(cached=1_234))
    assert "cache" not in text(report())


def test_cost_is_device_time_and_tokens_and_money_where_a_price_is_known() -> None:
    cost = Cost(verdicts=2_000, measured=1_000, device_s=36.0, prompt_tokens=250_000)
    seen = report(cost=cost)

    assert (
        line(text(seen), "cost:") == "cost: 36.0 device-seconds · 250,000 tokens read · 36.00 s per 1,000 verdicts · "
    )
    with_price = io.StringIO()
    render(seen, Console(file=with_price, width=200), price_per_device_hour=2.5)
    assert "0.025 per 1,000 at 2.5 an hour · measured on 1,000 of 2,000" in with_price.getvalue()
    assert "cost:" not in text(report())


def shares(**changes: Any) -> CascadeShares:
    facts: dict[str, Any] = {"unparseable": 0, "dead": 0}
    small = StageShare(run_id="r1", guard="small", judged=5720, settled=4290, device_s=6, **facts)
    large = StageShare(run_id="r1-next", guard="large", judged=1430, settled=1430, device_s=60, **facts)
    return CascadeShares(stages=(small, large), **({"device_s_saved": 174.0} | changes))


def test_a_cascade_says_who_settled_what_and_what_that_saved() -> None:
    shown = text(report(cascade=shares()))

    assert line(shown, "small").split() == ["small", "5,720", "4,290", "75.0%", "0", "0", "6.0", "s"]
    assert line(shown, "large").split() == ["large", "1,430", "1,430", "25.0%", "0", "0", "60.0", "s"]
    assert "174.0 s of device time saved by calculation, compared with large alone" in shown
    assert "accuracy" not in shown.split("Stage")[1]  # what it cost is not known without a run to compare with
    assert "of device time lost" in text(report(cascade=shares(device_s_saved=-3.0)))
    assert "of device time" not in text(report(cascade=shares(device_s_saved=None)))


def test_a_cascade_beside_a_run_of_one_guard_says_what_it_cost() -> None:
    against = Against(
        run_id="r2",
        guard="large",
        items=5720,
        agreement=0.9912,
        device_s=241,
        accuracy=0.9,
        cascade_accuracy=0.8975,
        accuracy_lost=Interval(low=-0.001, high=0.006),
    )
    shown = " ".join(text(report(cascade=shares(against=against))).split())

    assert "compared with run r2 of large, 5,720 items: 99.12% end alike · device 66.0 s, not 241.0 s" in shown
    assert "accuracy 0.8975, not 0.9000: +0.0025 lost (-0.0010 to +0.0060)" in shown


def test_a_cancelled_run_shows_no_metrics_and_says_why() -> None:
    output = text(report(state=RunState.CANCELLED, groups=(), without_groups="the run was cancelled"))

    assert "no metrics: the run was cancelled" in output
    assert "Accuracy" not in output
    assert "unsafe" not in output


def test_the_reasons_of_answers_that_could_not_be_read_are_counted() -> None:
    output = text(report(unparseable_reasons={"neither word is likely": 3, "the text ended early": 12}))

    assert output.index("12 unparseable: the text ended early") < output.index("3 unparseable: neither word is likely")
