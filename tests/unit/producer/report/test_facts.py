import json

import pytest

from infra.metrics import measure
from producer.report.view import to_json
from schemas.runs import Cost, Metric, MetricGroup, RunCounts, RunReport, RunSpec, RunState
from tests.unit.infra.metrics.build import judged


def report(**reasons: int) -> RunReport:
    return RunReport(
        run_id="r",
        name="夜间",
        state=RunState.COMPLETE,
        spec=RunSpec(guard="fake", source="-"),
        counts=RunCounts(accepted=1, settled=1, scored=1, unparseable=0, dead=0, pending=0),
        groups=measure([judged("safe", "safe", 0.1)], resamples=20),
        dead_reasons=reasons,
    )


def test_a_report_reads_back_equal() -> None:
    assert RunReport.model_validate_json(to_json(report(a=1))) == report(a=1)


def test_equal_reports_are_equal_text_whatever_the_order_of_reasons() -> None:
    assert to_json(report(a=1, b=2)) == to_json(report(b=2, a=1))


def test_chinese_stays_readable() -> None:
    assert '"name": "夜间"' in to_json(report())


def test_an_undefined_metric_has_a_null_value_and_its_reason() -> None:
    groups = json.loads(to_json(report()))["groups"]
    recall = next(m for m in groups[0]["metrics"] if m["name"] == "recall_unsafe")

    assert recall["value"] is None
    assert recall["undefined"]


def test_a_number_that_json_does_not_know_is_refused() -> None:
    group = MetricGroup(kind="all", name="all", metrics=(Metric(name="x", n=1, value=float("nan")),))

    with pytest.raises(ValueError, match="JSON"):
        to_json(report().model_copy(update={"groups": (group,)}))


def test_answers_from_the_cache_are_counted_and_absent_where_there_were_none() -> None:
    cached = report().model_copy(update={"cached": 3})

    assert json.loads(to_json(cached))["cached"] == 3
    assert RunReport.model_validate_json(to_json(cached)) == cached
    assert "cached" not in json.loads(to_json(report()))


def test_cost_is_told_per_1000_verdicts_and_as_money_only_with_a_price() -> None:
    costly = report().model_copy(update={"cost": Cost(verdicts=4, measured=2, device_s=3.0, prompt_tokens=10)})

    plain = json.loads(to_json(costly))["cost"]
    priced = json.loads(to_json(costly, price_per_device_hour=1200))["cost"]

    assert RunReport.model_validate_json(to_json(costly, price_per_device_hour=1)) == costly
    assert plain["per_1000_verdicts"] == {"device_s": 1500.0, "prompt_tokens": 5000.0, "new_tokens": 0.0}
    assert "money" not in plain
    assert (priced["money"], priced["per_1000_verdicts"]["money"]) == (1.0, 500.0)
    assert "cost" not in json.loads(to_json(report()))
