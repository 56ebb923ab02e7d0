"""Rules, dashboards and the docs' list against the declared metrics, and promtool's word on the rules."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.coordination import counters as telemetry
from infra.coordination.counters import Kind, Metric
from tests.support.prometheus import RULES, tool

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "infra/grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((RULES / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DECLARED = (*telemetry.FLEET, *telemetry.GATEWAY)


def _series(metric: Metric) -> set[str]:
    if metric.kind is Kind.HISTOGRAM:
        return {metric.name + part for part in ("_bucket", "_sum", "_count")}
    return {metric.name}


def _expressions() -> list[str]:
    panels = [panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]
    return [rule["expr"] for rule in ALERTS] + [t["expr"] for panel in panels for t in panel.get("targets", ())]


def _used() -> set[str]:
    return _names(" ".join(_expressions()))


def _names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:libra|celery)_\w+", text))


def test_rules_and_dashboards_ask_for_declared_metrics_alone_and_for_each_of_them() -> None:
    used = _used()

    assert used <= set().union(*map(_series, DECLARED))
    assert [metric.name for metric in DECLARED if not _series(metric) & used] == []


def test_autoscaling_asks_for_declared_metrics_alone() -> None:
    asked = _names((ROOT / "infra/kubernetes/base/scaling.yaml").read_text())

    assert asked == {telemetry.OLDEST_AGE.name, telemetry.ITEMS_PENDING.name}


def test_the_docs_list_is_the_declarations() -> None:
    text = (ROOT / "docs/observability.md").read_text()
    listed = re.findall(r"^\| `((?:libra|celery)_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)

    assert listed == [
        (metric.name, metric.kind.value, ", ".join(metric.labels) or "–", metric.help) for metric in DECLARED
    ]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_tried_both_ways_and_names_a_runbook_that_exists(rule: dict[str, Any]) -> None:
    tried = [
        bool(trial.get("exp_alerts"))
        for test in yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]
        for trial in test["alert_rule_test"]
        if trial["alertname"] == rule["alert"]
    ]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)

    assert set(tried) == {True, False}
    assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "command",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_agrees(command: tuple[str, ...]) -> None:
    done = subprocess.run([tool("promtool"), *command], cwd=RULES, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_the_provisioned_source_and_panels_that_do_not_overlap(name: str) -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    panels = DASHBOARDS[name]["panels"]
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]

    assert DASHBOARDS[name]["uid"] == name
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert {t["datasource"]["uid"] for panel in panels for t in panel.get("targets", ())} == {source["uid"]}
