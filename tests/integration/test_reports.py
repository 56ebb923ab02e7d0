"""Pages, comparisons, exports and imports of runs that are in a real ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from infra.critic import read_critic
from infra.ledger import intake, retention, settlement, stats
from infra.ledger.runs import list_runs, run_status, stored_report
from infra.ledger.stats import Kind, mistakes, workers
from infra.servers.services import Services
from libra_fleet.cli.commands import BENCH
from libra_fleet.cli.exchange import export, import_
from libra_fleet.cli.reference import evaluate
from producer.report.page import gather, run_page
from schemas.items import Item, Label, Retention
from schemas.messages import VerdictChunk
from schemas.verdicts import Outcome, Timings, Verdict
from tests.support.finalizing import end
from tests.support.fleet import Fleet
from tests.support.make import FINGERPRINT, spec
from tests.support.pages import HOSTILE

SCORES = (0.9, 0.2, 0.8, None, 0.6, 0.1)
TRUTHS = (Label.UNSAFE, Label.UNSAFE, Label.SAFE, Label.SAFE, Label.UNSAFE, Label.SAFE)


def judged_run(services: Services, name: str, scores: tuple[float | None, ...] = SCORES) -> str:
    """A run that has ended: items of either truth with these scores; None is unparseable."""
    order, engine = spec(), services.engine
    run_id = intake.create_run(engine, order, name=name)
    items = [
        Item(
            id=f"i{at}", question="问", response=f"{HOSTILE} {at}", truth=truth, source="Real Data", category="违法犯罪"
        )
        for at, truth in enumerate(TRUTHS)
    ]
    (chunk,) = intake.accept(engine, run_id, order, [items])
    verdicts = [
        Verdict(seq=at, outcome=Outcome.UNPARSEABLE, raw="?")
        if score is None
        else Verdict(
            seq=at,
            outcome=Outcome.SCORED,
            label=Label.UNSAFE if score > 0.5 else Label.SAFE,
            p_unsafe=score,
            prompt_tokens=10,
        )
        for at, score in enumerate(scores)
    ]
    settlement.settle(
        engine,
        VerdictChunk(
            run_id=run_id,
            chunk_no=chunk.chunk_no,
            worker="gpu-1-7-0",
            fingerprint=FINGERPRINT,
            timings=Timings(queue_s=0.5, render_s=0.1, device_s=0.25),
            verdicts=tuple(verdicts),
        ),
    )
    intake.seal(engine, run_id)
    end(services, run_id)
    return run_id


@pytest.fixture
def ran(services: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    return judged_run(services, "first")


def call(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def test_the_ledger_tells_mistakes_pace_and_workers_and_the_page_is_the_same_each_time(
    services: Services, ran: str
) -> None:
    found = mistakes(services.engine, ran, limit=1)
    assert found.counts == {Kind.MISSED: 1, Kind.FALSE_ALARM: 1, Kind.UNPARSEABLE: 1}
    assert [(one.kind, one.item_id) for one in found.listed] == [
        (Kind.MISSED, "i1"),
        (Kind.UNPARSEABLE, "i3"),
        (Kind.FALSE_ALARM, "i2"),
    ]
    pace = stats.pace(services.engine, ran, bars=6)
    assert pace is not None
    assert sum(bar.settled for bar in pace.bars) == 6
    assert [bar.device_p50_s for bar in pace.bars if bar.device_p50_s is not None] == [0.25]
    assert workers(services.engine, ran) == [("gpu-1-7-0", 1, 6)]

    report = stored_report(services.engine, ran)
    assert report is not None
    pages = {run_page(report, gather(services.engine, report), with_text=True) for _ in range(2)}
    assert len(pages) == 1
    assert "<img" not in pages.pop()

    retention.scrub_run(services.engine, ran, Retention.HASH)
    assert "The texts have been scrubbed" in run_page(report, gather(services.engine, report), with_text=True)


def test_a_page_is_written_and_named_and_two_runs_compare(services: Services, ran: str, tmp_path: Path) -> None:
    judged_run(services, "second", (0.9, 0.7, 0.3, 0.2, 0.6, 0.1))
    page, board = tmp_path / "deep" / "page.html", tmp_path / "board.html"

    said = call(BENCH, "report", "first", "--html", str(page))
    facts = json.loads(call(BENCH, "compare", "first", "second", "--html", str(board), "--json").stdout)

    assert f"page written to {page}" in said.stderr.replace("\n", "")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert board.read_text(encoding="utf-8").count("<details>") == 3
    assert [one["name"] for one in facts["board"]] == ["second", "first"]
    (contest,) = facts["contests"]
    assert (contest["compared"], contest["alike"]) == (6, 3)
    assert contest["mcnemar"] == {"first_only": 0, "second_only": 3, "p_value": 0.25, "exact": True}
    assert {row["id"] for row in contest["examples"]} == {"i1", "i2", "i3"}
    table = call(BENCH, "compare", "first", "second", "--markdown").stdout
    assert table.splitlines()[2].startswith("| second | fake | 6 | 1.0000 |")
    assert call(BENCH, "compare", "first", "second").stdout.count("second compared with first") == 1


def test_rows_leave_the_ledger_whole_and_texts_only_if_asked_for(services: Services, ran: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in call(export, ran, "--out", "-").stdout.splitlines()]
    assert [(row["id"], row["label"], row["response"]) for row in lines[:2]] == [
        ("i0", "unsafe", None),
        ("i1", "safe", None),
    ]
    call(export, ran, "--out", str(tmp_path / "rows.parquet"), "--text", "--errors")
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["id"] for row in table] == ["i1", "i2", "i3"]
    assert table[0]["response"] == f"{HOSTILE} 1"
    assert table[0]["settled_at"].tzinfo is not None

    retention.scrub_run(services.engine, ran, Retention.HASH)
    scrubbed = call(export, ran, "--out", str(tmp_path / "rows.jsonl"), "--text")
    assert "6 of 6 texts have been scrubbed" in scrubbed.stderr
    assert not list(tmp_path.glob("*.part"))


def test_results_in_the_benchmarks_form_go_out_and_come_back_as_the_same_run(
    services: Services, ran: str, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.start_collector()
    out = tmp_path / "outputs"
    call(export, ran, "--out", str(out / "0-of-1.jsonl"), "--format", "critic", "--text")
    rows = [json.loads(line) for line in (out / "0-of-1.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [read_critic(row["critic"]) for row in rows] == [
        None if score is None else Label.UNSAFE if score > 0.5 else Label.SAFE for score in SCORES
    ]
    assert len(evaluate(str(out), str(out)).rows) == 6

    call(import_, str(out), "--guard", "theirs", "--name", "imported", "--json")

    theirs, ours = (stored_report(services.engine, run_status(services.engine, run).id) for run in ("imported", ran))
    assert theirs is not None
    assert ours is not None
    accuracy = [next(g for g in one.groups if g.kind == "average").metric("accuracy") for one in (theirs, ours)]
    assert accuracy[0] == accuracy[1]
    assert (theirs.counts, theirs.fingerprint) == (ours.counts, {})
    (contest,) = json.loads(call(BENCH, "compare", ran, "imported", "--json").stdout)["contests"]
    assert (contest["compared"], contest["alike"]) == (6, 6)


def test_a_file_that_is_no_result_is_refused_whole(services: Services, ran: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"id": 1, "response": "x", "critic": "安全"}\n{"id": 1, "response": "x", "critic": "安全"}\n{"id": 2}\n'
    )

    refused = CliRunner().invoke(import_, [str(path), "--guard", "theirs"])

    assert refused.exception is not None
    assert "2 bad rows; nothing was imported" in str(refused.exception)
    assert [run.name for run in list_runs(services.engine)] == ["first"]
