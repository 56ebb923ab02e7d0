"""Devices for a rate: from measured figures alone, with room for latency, and honest where nothing was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DataError, UsageError
from libra_fleet.cli.capacity import figures
from libra_fleet.cli.capacity.command import capacity
from libra_fleet.cli.capacity.measured import from_file
from libra_fleet.cli.capacity.plan import bulk_devices, erlang_c, late_wait_s, live_plan
from producer.report.json import to_json
from schemas.runs import Cost, RunCounts, RunReport, RunSpec, RunState

PAGE = (Path(__file__).parents[4] / "docs" / "performance.md").read_text(encoding="utf-8")


def report_file(folder: Path, *, guard: str = "fake", cached: int = 0, cost: Cost | None) -> Path:
    report = RunReport(
        run_id="r",
        name="measured",
        state=RunState.COMPLETE,
        spec=RunSpec(guard=guard, source="-"),
        counts=RunCounts(accepted=1_000, settled=1_000, scored=1_000, unparseable=0, dead=0, pending=0),
        cached=cached,
        cost=cost,
    )
    path = folder / "report.json"
    path.write_text(to_json(report), encoding="utf-8")
    return path


COST = Cost(verdicts=1_000, measured=1_000, device_s=8.0, prompt_tokens=240_000, devices=("a GPU",))


def test_every_figure_is_the_one_of_the_performance_page() -> None:
    for path in (figures.BULK, figures.LIVE):
        assert [quote for quote in path.quotes if quote not in PAGE] == []
    for quote in (figures.COLLECTOR_QUOTE, *figures.LIVE_QUOTES, figures.BULK_BUSY_QUOTE):
        assert quote in PAGE


def test_a_rate_is_judgements_by_busy_device_seconds_and_what_the_cache_answered_is_none(tmp_path: Path) -> None:
    found = from_file(report_file(tmp_path, cached=200, cost=COST), "fake")

    assert found.items_per_device_s == 100.0
    assert (found.device, found.tokens_per_item) == ("a GPU", 300.0)


@pytest.mark.parametrize(
    ("cost", "guard", "words"),
    [
        (None, "fake", "at least 100 are needed"),
        (COST.model_copy(update={"measured": 40}), "fake", "40 judgements"),
        (COST.model_copy(update={"devices": ("a GPU", "another")}), "fake", "several kinds of device"),
        (COST, "libra-tiny", "is of fake, not of libra-tiny"),
    ],
)
def test_what_says_nothing_of_one_device_is_refused(tmp_path: Path, cost: Cost | None, guard: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_file(report_file(tmp_path, cost=cost), guard)


def test_the_engines_benchmark_serves_guards_of_its_shape_alone(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    figure = {"bench": "engine", "name": "this engine", "unit": "items/s", "value": 7.1}
    path.write_text(json.dumps({"machine": {"cpu": "EPYC", "cores": 2}, "figures": [figure]}))

    found = from_file(path, "libra-guard-qwen2.5-0.5b-instruct")

    assert (found.items_per_device_s, found.device) == (7.1, "EPYC, 2 cores")
    with pytest.raises(UsageError, match="the shape of"):
        from_file(path, "libra-guard-qwen2.5-7b-instruct")
    path.write_text(json.dumps({"figures": []}))
    with pytest.raises(DataError, match="no rate of the engine"):
        from_file(path, "libra-guard-qwen2.5-0.5b-instruct")


@given(st.floats(0.1, 5_000), st.floats(0.5, 500), st.floats(0.07, 2))
def test_a_plan_keeps_up_with_the_rate_and_its_p99_and_more_rate_never_needs_fewer(
    rate: float, per_device: float, p99_s: float
) -> None:
    bulk, live = bulk_devices(rate, per_device), live_plan(rate, per_device, p99_s)

    assert bulk * per_device >= rate
    assert live is not None
    assert live.devices >= bulk
    assert live.busy <= figures.LIVE_BUSY + 1e-9
    assert live.p99_s <= p99_s
    more = live_plan(1.5 * rate, per_device, p99_s)
    assert more is not None
    assert more.devices >= live.devices


def test_waiting_follows_erlang() -> None:
    assert erlang_c(0.5, 1) == pytest.approx(0.5)  # M/M/1: as often as it is busy
    assert erlang_c(2.0, 3) == pytest.approx(4 / 9)  # the textbooks' c = 3, offered 2
    assert late_wait_s(50, 100, 1) == pytest.approx(math.log(0.5 / 0.01) / 50)
    assert late_wait_s(1, 100, 8) == 0.0


def test_a_latency_below_the_fleets_own_is_refused_whatever_the_devices() -> None:
    assert live_plan(1, 1_000, 0.06) is None


def test_the_command_says_devices_money_and_what_is_extrapolated(tmp_path: Path) -> None:
    path = report_file(tmp_path, cost=COST)
    base = ["--guard", "fake", "--measured", str(path), "--price-per-gpu-hour", "3.6"]

    facts = json.loads(CliRunner().invoke(capacity, [*base, "--rate", "1000", "--json"]).stdout)
    shown = CliRunner().invoke(capacity, [*base, "--rate", "20000", "--p99", "50"]).stdout.replace("\n", " ")

    assert facts["measured"]["items_per_device_s"] == 125.0
    assert (facts["bulk"]["devices"], facts["live"]["devices"]) == (9, 10)
    assert facts["bulk"]["money_per_1000"] == pytest.approx(9 * 3.6 / 3_600)
    assert facts["around"]["bulk"]["cores"]["Redis"] == 0.009
    assert not facts["around"]["bulk"]["extrapolated"]
    assert facts["around"]["live over the gateway"]["extrapolated"]
    assert "p99 of 50 ms is below" in shown
    assert "the highest rate that was really run is 10,280/s" in shown
