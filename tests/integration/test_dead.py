"""`libra run dead`: what died is listed with its reason and can be tried again without touching its run."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from infra.ledger import intake, settlement
from infra.ledger.runs import run_status
from infra.servers.services import Services
from libra_fleet.cli.commands import DEAD
from schemas.messages import Lane
from tests.support.make import items, spec, verdicts_for


@pytest.fixture
def run_with_dead(services: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    run_id = intake.create_run(services.engine, spec(repeat=2))
    chunks = intake.accept(services.engine, run_id, spec(repeat=2), [items(4)])
    intake.seal(services.engine, run_id)
    settlement.settle(services.engine, verdicts_for(chunks[0], seqs=[0, 1]))
    settlement.settle_dead(services.engine, run_id, [chunk.chunk_no for chunk in chunks], "a test killed it")
    return run_id


def test_dead_items_are_listed_with_their_reason_and_without_their_text(run_with_dead: str) -> None:
    listed = CliRunner().invoke(DEAD, ["list", run_with_dead, "--json"])

    rows = json.loads(listed.stdout)
    assert [row["id"] for row in rows] == ["item-0", "item-1", "item-2", "item-2", "item-3", "item-3"]
    assert {row["reason"] for row in rows} == {"a test killed it"}
    assert "text number" not in listed.stdout


def test_a_dead_item_is_shown_whole_when_asked_for(run_with_dead: str) -> None:
    shown = json.loads(CliRunner().invoke(DEAD, ["show", run_with_dead, "item-3"]).stdout)

    assert (shown["response"], shown["truth"]) == ("text number 3", "unsafe")


def test_trying_again_is_a_new_run_with_each_dead_item_once(services: Services, run_with_dead: str) -> None:
    retried = CliRunner().invoke(DEAD, ["retry", run_with_dead])
    new = run_status(services.engine, retried.stdout.strip())

    assert (new.counts.accepted, new.expected) == (4, 4)
    assert services.coordination.queues.length("fake", Lane.BULK) == 1
    assert run_status(services.engine, run_with_dead).counts.dead == 6
