"""`libra run verify` finds every corruption that is planted in the books."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from infra.ledger import intake, settlement
from infra.ledger.audit import audit
from infra.servers.services import Services
from schemas.runs import RunReport
from tests.support.finalizing import end
from tests.support.make import items, spec, verdicts_for

PLANTED = {
    "a lost verdict": "DELETE FROM verdicts WHERE seq = 3",
    "a lost item": "DELETE FROM items WHERE seq = 5",
    "an item without a number": "UPDATE items SET seq = 99 WHERE seq = 9",
    "a doubled verdict": (
        "ALTER TABLE verdicts DROP CONSTRAINT pk_verdicts; INSERT INTO verdicts SELECT * FROM verdicts WHERE seq = 2"
    ),
    "a doubled item": (
        "ALTER TABLE items DROP CONSTRAINT uq_items_run_id_item_id; UPDATE items SET item_id = 'item-1' WHERE seq = 2"
    ),
    "an altered label": "UPDATE verdicts SET label = 'unsafe' WHERE seq = 4",
    "an altered outcome": "UPDATE verdicts SET outcome = 'unparseable', label = NULL WHERE seq = 4",
    "an altered text": "UPDATE items SET response = 'something else' WHERE seq = 6",
    "an altered id": "UPDATE items SET item_id = 'renamed' WHERE seq = 6",
    "a verdict of no item": (
        "INSERT INTO verdicts (run_id, seq, iteration, outcome, label, prompt_tokens, windows, attempt) "
        "SELECT id, 77, 0, 'scored', 'safe', 0, 1, 1 FROM runs"
    ),
    "a verdict of another iteration": "UPDATE verdicts SET iteration = 3 WHERE seq = 1",
    "a counter that was moved": "UPDATE runs SET scored = scored - 1, dead = dead + 1",
    "a chunk that was cut": "UPDATE chunks SET size = 2, settled = 2 WHERE chunk_no = 1",
    "a foreign fingerprint": "UPDATE verdicts SET fingerprint = 'other' WHERE seq = 7",
    "an answer from a cache that was not allowed": "UPDATE verdicts SET cached = true WHERE seq = 4",
    "a report that was changed": "UPDATE runs SET report = jsonb_set(report, '{counts,scored}', '1')",
}


@pytest.fixture
def complete_run(services: Services) -> str:
    run_id = intake.create_run(services.engine, spec())
    batch = items(10)
    chunks = intake.accept(services.engine, run_id, spec(), [batch[:4], batch[4:8], batch[8:]])
    intake.seal(services.engine, run_id)
    for chunk in chunks:
        settlement.settle(services.engine, verdicts_for(chunk))
    end(services, run_id)
    return run_id


def test_a_complete_run_is_sound_and_its_receipt_does_not_change(services: Services, complete_run: str) -> None:
    first, second = audit(services.engine, complete_run), audit(services.engine, complete_run)

    assert [check for check in first.checks if check.breaches] == []
    assert first.receipt == second.receipt


def test_a_run_that_still_goes_on_is_sound_with_pending_items(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    chunks = intake.accept(services.engine, run_id, spec(), [items(4), items(4, prefix="other")])
    settlement.settle(services.engine, verdicts_for(chunks[0]))

    assert audit(services.engine, run_id).sound


def test_duplicates_that_were_suppressed_count_as_wasted_work(services: Services, complete_run: str) -> None:
    status = audit(services.engine, complete_run)
    with services.engine.connect() as connection:
        chunk = connection.execute(sa.text("SELECT chunk_no, first_seq, size FROM chunks WHERE chunk_no = 0")).one()
    again = verdicts_for(_chunk_like(complete_run, chunk.chunk_no, chunk.first_seq, chunk.size))

    settlement.settle(services.engine, again)

    assert status.wasted_items == 0
    assert audit(services.engine, complete_run).wasted_items == 4
    assert audit(services.engine, complete_run).sound


def _chunk_like(run_id: str, chunk_no: int, first_seq: int, size: int):
    from schemas.guards import Mode
    from schemas.messages import ChunkItem, JudgeChunk, Lane

    texts = tuple(ChunkItem(seq=seq, question="", response="x") for seq in range(first_seq, first_seq + size))
    return JudgeChunk(
        run_id=run_id, chunk_no=chunk_no, guard="fake", mode=Mode.SCORE, lane=Lane.BULK, enqueued_at=0.0, items=texts
    )


@pytest.mark.parametrize("planted", PLANTED)
def test_every_planted_corruption_is_found(services: Services, complete_run: str, planted: str) -> None:
    with services.engine.begin() as connection:
        for statement in PLANTED[planted].split(";"):
            connection.execute(sa.text(statement))

    result = audit(services.engine, complete_run)

    assert not result.sound, planted


def test_the_report_keeps_the_receipt(services: Services, complete_run: str) -> None:
    with services.engine.connect() as connection:
        stored = connection.scalar(sa.text("SELECT report::text FROM runs WHERE id = :id"), {"id": complete_run})

    assert RunReport.model_validate_json(stored).receipt == audit(services.engine, complete_run).receipt
