"""A whole fleet whose model runs on an OpenAI-compatible server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("httpx2")

from infra.ledger import intake
from infra.ledger.items import settled_of
from infra.ledger.runs import run_status, stored_report
from infra.servers.services import Services
from producer.datasets import open_dataset, valid_items, validate
from producer.intake.submit import seal, submit
from schemas.guards import Mode
from schemas.items import Label
from schemas.messages import ChunkItem
from schemas.runs import RunSpec
from tests.support.checkpoints import small_tokenizer, write_checkpoint
from tests.support.fleet import Fleet
from tests.support.openai_server import serving_tiny
from worker.guards.registry import BUNDLED, load_guard

ITEMS = 40


def test_a_fleet_judges_through_a_server_as_libra_tiny_judges_itself(
    services: Services, fleet: Fleet, tmp_path: Path
) -> None:
    # The worker's side has the language half only.
    here = tmp_path / "language"
    shutil.copytree(BUNDLED["libra-tiny"], here, ignore=shutil.ignore_patterns("*.safetensors"))
    guard = load_guard("libra-tiny")
    with open_dataset("demo", limit=ITEMS) as dataset:
        demo = [row.item for row in valid_items(dataset, validate(dataset))]
    chunk = [ChunkItem(seq=at, question=item.question, response=item.response) for at, item in enumerate(demo)]

    with serving_tiny(BUNDLED["libra-tiny"]) as tiny:
        fleet.start_collector()
        worker = fleet.start("worker", "--guard", f"served={here}", "--engine", "openai", "--base-url", tiny.url)
        fleet.wait(lambda: fleet.is_ready(worker))
        tiny.faults += [(503, {}), (429, {"Retry-After": "0"})]
        spec = RunSpec(guard="served", source="demo")
        run_id = intake.create_run(services.engine, spec)
        submit(services, run_id, spec, demo)
        seal(services, run_id)
        fleet.wait(lambda: run_status(services.engine, run_id).state.ended)
        prompts = [prompt for (prompt,) in guard.render(chunk, Mode.SCORE)]
        direct = [guard.read_scores(seq, [row]) for seq, row in enumerate(tiny.engine.score(prompts, guard.label_ids))]

    report = stored_report(services.engine, run_id)
    assert report is not None
    assert (report.counts.accepted, report.counts.dead) == (ITEMS, 0), fleet.logs()
    assert report.fingerprint["engine"] == "openai-logprobs"
    assert report.fingerprint["revision"] == "served as tiny"
    through = settled_of(services.engine, run_id, [item.id for item in demo])
    assert [through[item.id][0].label for item in demo] == [verdict.label for verdict in direct]
    assert {verdict.label for verdict in direct} >= {Label.SAFE, Label.UNSAFE}


def test_a_worker_whose_server_is_not_there_ends_with_a_reason(fleet: Fleet, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", small_tokenizer(), context_tokens=1_024)
    worker = fleet.start(
        *("worker", "--guard", f"mine={folder}", "--engine", "openai", "--base-url", "http://127.0.0.1:9/v1")
    )
    assert worker.wait(60) == 5
    assert "no OpenAI-compatible server to use: http://127.0.0.1:9/v1: no connection" in fleet.logs()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "openai"), "--engine openai needs --base-url"),
        (("--base-url", "http://x/v1"), "--base-url goes with --engine openai"),
        (("--engine", "openai", "--base-url", "x:8000"), "expected an address such as http://gpu1:8000/v1"),
    ],
)
def test_options_of_a_server_that_make_no_sense_are_refused(fleet: Fleet, options: tuple[str, ...], said: str) -> None:
    assert fleet.start("worker", "--guard", "libra-tiny", *options).wait(60) == 2
    assert said in fleet.logs()
