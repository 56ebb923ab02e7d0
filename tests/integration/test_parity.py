"""`libra bench parity`: two runs over the same items, and where they differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.errors import RunError
from infra.servers.services import Services
from libra_fleet.cli.parity import Parity
from libra_fleet.cli.run import bench
from schemas.items import Label
from schemas.verdicts import Outcome
from tests.support.fleet import Fleet
from tests.support.make import pair

ROWS = [
    {"id": str(at), "response": f"[[fake:{end}]] {at}", "label": "安全" if at % 2 else "不安全", "source": "Real Data"}
    for at, end in enumerate(("safe", "unsafe", "unparseable") * 10)
]


@pytest.fixture
def source(services: Services, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    fleet.start_collector()
    fleet.start_worker()
    path = tmp_path / "data.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return str(path)


def test_a_guard_whose_modes_agree_passes_the_gate(source: str) -> None:
    options = ["parity", source, "--guard", "fake", "--no-local", "--require", "0.99"]
    facts = json.loads(CliRunner().invoke(bench, [*options, "--json"], catch_exceptions=False).stdout)

    assert (facts["items"], facts["agreement"]) == (30, 1.0)
    assert {end: facts["confusion"][end][end] for end in ("safe", "unsafe", "unparseable")} == {
        "safe": 10,
        "unsafe": 10,
        "unparseable": 10,
    }
    assert facts["metrics"]["score"] == facts["metrics"]["generate"]
    assert facts["speed_ratio"] > 0
    assert facts["examples"] == []
    shown = CliRunner().invoke(bench, options, catch_exceptions=False).stdout
    assert "100.00% of 30 items end alike; 0 differ" in shown


def test_a_guard_whose_modes_differ_fails_the_gate_and_shows_no_text(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    differing = [pair("7", labels=(Label.SAFE, Label.UNSAFE)), *(pair(str(at)) for at in range(3))]
    monkeypatch.setattr("libra_fleet.cli.parity.pairs_of", lambda *_: iter(differing))
    options = ["parity", source, "--guard", "fake", "--no-local", "--require", "0.99"]

    result = CliRunner().invoke(bench, options)
    assert isinstance(result.exception, RunError)
    assert "agree on 0.7500 of the items, below 0.99" in str(result.exception)
    assert "secret" not in result.stdout
    assert "secret" in CliRunner().invoke(bench, [*options, "--show-text"]).stdout


def test_outcomes_are_as_the_ledger_has_them() -> None:
    assert Parity.of([pair("1", outcomes=(Outcome.DEAD, Outcome.DEAD), labels=(None, None))]).agreement == 0
