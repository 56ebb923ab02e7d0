"""`libra run parity`: two runs over the same items, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from infra.errors import RunError
from infra.ledger.items import PairedVerdict, both_settled
from infra.servers.services import Services
from libra_fleet.cli.commands import RUN
from schemas.items import Label
from tests.support.fleet import Fleet

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
    facts = json.loads(CliRunner().invoke(RUN, [*options, "--json"], catch_exceptions=False).stdout)

    assert (facts["items"], facts["agreement"]) == (30, 1.0)
    assert {end: facts["confusion"][end][end] for end in ("safe", "unsafe", "unparseable")} == {
        "safe": 10,
        "unsafe": 10,
        "unparseable": 10,
    }
    assert facts["metrics"]["score"] == facts["metrics"]["generate"]
    assert facts["speed_ratio"] > 0
    assert facts["examples"] == []
    shown = CliRunner().invoke(RUN, options, catch_exceptions=False).stdout
    assert "100.00% of 30 items end alike; 0 differ" in shown


def test_a_guard_whose_modes_differ_fails_the_gate_and_shows_texts_where_asked(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_differs(engine: sa.Engine, first: str, second: str) -> Iterator[PairedVerdict]:
        for row in both_settled(engine, first, second):
            yield row._replace(labels=(Label.SAFE, Label.UNSAFE)) if row.item_id == "0" else row

    monkeypatch.setattr("libra_fleet.cli.compare.both_settled", one_differs)
    options = ["parity", source, "--guard", "fake", "--no-local", "--require", "0.99"]

    plain = CliRunner().invoke(RUN, options)
    with_text = json.loads(CliRunner().invoke(RUN, [*options, "--show-text", "--json"]).stdout)

    assert isinstance(plain.exception, RunError)
    assert "agree on 0.9667 of the items, below 0.99" in str(plain.exception)
    assert "fake:" not in plain.stdout
    (example,) = with_text["examples"]
    assert (example["id"], example["response"], example["score"]) == ("0", ROWS[0]["response"], "safe")
    assert example["raw"]
