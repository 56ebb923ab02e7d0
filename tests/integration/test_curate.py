"""Curation over a fleet: two judges annotate, and hard items come out of the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.ledger import decisions, intake, reviews, settlement
from infra.ledger.items import items_of
from infra.ledger.runs import list_runs
from infra.servers.services import Services
from libra_fleet.cli.commands import CURATE
from producer.curation.files import path_of, rows_of
from schemas.items import Label
from tests.support.fleet import Fleet
from tests.support.make import spec
from tests.support.submissions import judged, policy_of, submitted


@pytest.fixture(autouse=True)
def _configured(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(CURATE, [str(argument) for argument in arguments], catch_exceptions=False)


def test_two_judges_annotate_and_a_killed_stage_is_resumed(services: Services, fleet: Fleet, tmp_path: Path) -> None:
    """With `libra-tiny` and `fake`; what was judged before the kill is not judged again."""
    tiny = fleet.start("worker", "--guard", "libra-tiny", "--devices", "cpu")
    fleet.start_collector()
    fleet.start_worker()
    folder = tmp_path / "rows"
    run("combine", folder, "--count", 13)
    run("queries", folder, "--per-combination", 1)
    run("augment", folder, "--variants", 0)
    run("responses", folder)
    fleet.wait(lambda: fleet.is_ready(tiny))

    judges = ("--judges", "libra-tiny,fake", "--no-local")
    assert run("annotate", folder, *judges).exit_code == 0
    kept, aside = list(rows_of(folder, "annotated")), list(rows_of(folder, "dropped"))
    assert len(kept) + len(aside) == len(list(rows_of(folder, "responses")))
    assert {row["label"] for row in kept} == {"安全", "不安全"}
    assert all(len({said["label"] for said in row["verdicts"].values()}) == 2 for row in aside)
    assert {judge for row in aside for judge in row["verdicts"]} == {"libra-tiny", "fake"}

    whole = path_of(folder, "annotated").read_bytes()
    path_of(folder, "annotated").write_bytes(whole[: len(whole) // 2])
    note = folder / "annotated.json"
    note.write_text(note.read_text().replace('"done": true', '"done": false'))
    runs = [status.name for status in list_runs(services.engine, limit=10)]
    assert run("annotate", folder, *judges).exit_code == 0
    assert path_of(folder, "annotated").read_bytes() == whole
    assert [status.name for status in list_runs(services.engine, limit=10)] == runs


def test_hard_items_of_a_live_run_come_with_their_reasons(services: Services, tmp_path: Path) -> None:
    decisions.put_policy(services.engine, policy_of())
    decisions.set_tenant_policy(services.engine, "forum", "default")
    chunk = submitted(services, 6)
    settlement.settle(services.engine, judged(chunk, [0.55, 0.95, 0.01, 0.02, 0.03, None]))
    reviews.decide(services.engine, chunk.run_id, 1, label=Label.SAFE, moderator="ann")
    order = spec().model_copy(update={"parent": chunk.run_id})
    child = intake.create_run(services.engine, order)
    same = list(items_of(services.engine, chunk.run_id, None))
    (again,) = intake.accept(services.engine, child, order, [same])
    settlement.settle(services.engine, judged(again, [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]))
    reviews.note_disagreements(services.engine, child, chunk.run_id)

    result = run("select", tmp_path, "--run", chunk.run_id, "--licence", "own forum")
    assert result.exit_code == 0
    found = {row["id"].rpartition("-")[2]: row for row in rows_of(tmp_path, "selected")}
    assert {seq: row["provenance"]["stage"] for seq, row in found.items()} == {
        "0": "select:small_margin+label_missed",
        "1": "select:human_overruled",
        "2": "select:guards_disagree",
        "3": "select:label_missed",
    }
    assert found["1"]["label"] == "安全"
    assert found["1"]["provenance"]["licence"] == "own forum"
    assert "human_overruled: 1" in result.stderr
