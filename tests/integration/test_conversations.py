"""Conversations through the ledger: recovered whole, scrubbed whole, counted by kind."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from infra.ledger import intake, recovery
from infra.ledger.engine import autocommit
from infra.ledger.recovery import OverdueChunk
from infra.ledger.tables import metadata
from infra.servers.services import Services
from schemas.items import Item, Kind, Retention, Turn
from schemas.messages import KINDS_VERSION, JudgeChunk
from tests.support.finalizing import finalizer
from tests.support.make import spec, verdicts_for
from worker.collector.report import build_report
from worker.collector.tasks import Collector

HISTORY = (Turn(role="user", content="secret one"), Turn(role="assistant", content="secret two"))
ITEMS = [
    Item(id="talk", question="secret three", response="secret four", history=HISTORY),
    Item(id="asked", question="secret five", history=HISTORY),
    Item(id="prompt", question="secret six"),
    Item(id="response", response="secret seven", kind=Kind.RESPONSE),
    Item(id="text", response="secret eight"),
    Item(id="pair", question="secret nine", response="secret ten"),
]


def accepted(services: Services) -> tuple[str, JudgeChunk]:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [ITEMS])
    return run_id, chunk


def test_a_lost_chunk_is_taken_up_with_every_turn_and_kind(services: Services) -> None:
    run_id, chunk = accepted(services)

    with autocommit(services.engine) as connection:
        again = recovery.take_up(connection, OverdueChunk(run_id, chunk.chunk_no, chunk.attempt))

    assert again is not None
    assert again.items == chunk.items
    assert (again.version, again.attempt) == (KINDS_VERSION, 2)
    assert [item.kind for item in again.items][:4] == [Kind.MESSAGES, Kind.MESSAGES, Kind.PROMPT, Kind.RESPONSE]


@pytest.mark.parametrize("kept", [Retention.HASH, Retention.NONE])
def test_no_turn_stays_once_a_conversation_is_settled(services: Services, kept: Retention) -> None:
    run_id, chunk = accepted(services)
    intake.seal(services.engine, run_id)
    collect = Collector(
        services.engine, services.coordination, services.publisher, retention=kept, stopping=lambda: False
    )

    collect.settle(verdicts_for(chunk).model_dump_json())
    finalizer(services, retention=kept).finalize(run_id)

    with services.engine.connect() as connection:
        stored = " ".join(str(row) for table in metadata.sorted_tables for row in connection.execute(table.select()))
        kinds = connection.scalars(sa.text("SELECT kind FROM items ORDER BY seq")).all()
    assert "secret" not in stored
    assert kinds == [item.kind.value for item in ITEMS]


def test_a_report_counts_items_by_kind(services: Services) -> None:
    run_id, _ = accepted(services)

    assert build_report(services.engine, run_id).kinds == {
        "text": 1,
        "prompt": 1,
        "response": 1,
        "pair": 1,
        "messages": 2,
    }
