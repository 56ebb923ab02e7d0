"""User text stays as long as the retention setting says; counts, metrics and proofs do without it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from infra.errors import UsageError
from infra.ledger import intake, retention, settlement
from infra.ledger.audit import audit
from infra.ledger.items import accepted_hashes
from infra.ledger.runs import list_runs, stored_report
from infra.ledger.tables import metadata
from infra.servers.services import Services
from libra_fleet.cli.commands import DEAD
from libra_fleet.cli.data import purge
from producer.intake.submit import submit
from schemas.items import Example, Item, Label, Retention
from schemas.messages import JudgeChunk, Lane, VerdictChunk
from tests.support.finalizing import finalizer
from tests.support.make import items, spec, verdicts_for
from worker.collector.tasks import Collector

ITEMS = 6
SECRET = "text number"
SHOWN = "text of an example"


def begun(services: Services, *, repeat: int = 1, lane: Lane = Lane.BULK) -> tuple[str, list[JudgeChunk]]:
    shown = (Example(question="", response=SHOWN, label=Label.SAFE),)
    order = spec(repeat=repeat, lane=lane).model_copy(update={"examples": shown})
    run_id = intake.create_run(services.engine, order)
    batch = items(ITEMS)
    return run_id, intake.accept(services.engine, run_id, order, [batch[:4], batch[4:]])


def collector(services: Services, kept: Retention) -> Collector:
    return Collector(
        services.engine,
        services.coordination,
        services.publisher,
        retention=kept,
        stopping=lambda: False,
    )


def chatty(chunk: JudgeChunk) -> VerdictChunk:
    """Verdicts that quote what they judged."""
    verdicts = verdicts_for(chunk)
    quoting = [verdict.model_copy(update={"raw": f"I read: {SECRET}"}) for verdict in verdicts.verdicts]
    return verdicts.model_copy(update={"verdicts": tuple(quoting)})


def completed(services: Services, kept: Retention, *, repeat: int = 1) -> str:
    run_id, chunks = begun(services, repeat=repeat)
    intake.seal(services.engine, run_id)
    collect = collector(services, kept)
    for chunk in chunks:
        collect.settle(chatty(chunk).model_dump_json())
    finalizer(services, retention=kept).finalize(run_id)
    return run_id


def stored_text(services: Services) -> str:
    """Everything the ledger holds, as text."""
    with services.engine.connect() as connection:
        rows = [row for table in metadata.sorted_tables for row in connection.execute(table.select())]
    return " ".join(map(str, rows))


@pytest.mark.parametrize("repeat", [1, 2])
@pytest.mark.parametrize("kept", [Retention.HASH, Retention.NONE])
def test_nothing_of_a_text_stays_once_its_run_is_complete(services: Services, kept: Retention, repeat: int) -> None:
    run_id = completed(services, kept, repeat=repeat)

    hashes = accepted_hashes(services.engine, run_id, [item.id for item in items(ITEMS)])
    report = stored_report(services.engine, run_id)
    assert SECRET not in stored_text(services)
    assert SHOWN not in stored_text(services)
    assert {bool(digest) for digest in hashes.values()} == {kept is Retention.HASH}
    assert audit(services.engine, run_id).sound
    assert report is not None
    assert report.counts.scored == ITEMS * repeat
    assert any(group.kind == "average" for group in report.groups)


def test_full_retention_keeps_texts(services: Services) -> None:
    completed(services, Retention.FULL)

    assert stored_text(services).count(SECRET) == 2 * ITEMS
    assert stored_text(services).count(SHOWN) == 1, "with the run; its report goes without"


def test_live_items_are_scrubbed_as_they_settle_and_pending_ones_are_not(services: Services) -> None:
    run_id, chunks = begun(services, lane=Lane.LIVE)

    collector(services, Retention.HASH).settle(chatty(chunks[0]).model_dump_json())

    assert stored_text(services).count(SECRET) == 2
    assert audit(services.engine, run_id).sound


def test_given_up_items_are_scrubbed_as_well(services: Services) -> None:
    run_id, chunks = begun(services)
    chunk_nos = [chunk.chunk_no for chunk in chunks]

    settlement.settle_dead(services.engine, run_id, chunk_nos, "lost", retention=Retention.HASH)

    assert SECRET not in stored_text(services)


def test_a_text_that_goes_before_its_verdict_is_a_breach(services: Services) -> None:
    run_id, _ = begun(services)
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE items SET question = '', response = '' WHERE seq = 1"))

    assert [check.name for check in audit(services.engine, run_id).checks if check.breaches] == [
        "no item lost its text before its verdict"
    ]


def test_a_changed_hash_of_a_scrubbed_item_is_found(services: Services) -> None:
    run_id = completed(services, Retention.HASH)
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE items SET content_hash = '\\x00' WHERE seq = 1"))

    assert not audit(services.engine, run_id).sound


def test_submitting_a_scrubbed_data_set_again_changes_nothing(services: Services) -> None:
    run_id, chunks = begun(services)
    for chunk in chunks:
        settlement.settle(services.engine, verdicts_for(chunk), retention=Retention.NONE)

    assert submit(services, run_id, spec(), items(ITEMS)) == 0


@pytest.fixture
def configured(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    return services


def test_dead_items_without_text_are_listed_but_not_tried_again(configured: Services) -> None:
    run_id, chunks = begun(configured)
    settlement.settle_dead(
        configured.engine, run_id, [chunk.chunk_no for chunk in chunks], "lost", retention=Retention.HASH
    )

    listed = CliRunner().invoke(DEAD, ["list", run_id, "--json"])
    retried = CliRunner().invoke(DEAD, ["retry", run_id])

    assert "item-3" in listed.stdout
    assert isinstance(retried.exception, UsageError)
    assert len(list_runs(configured.engine)) == 1


def test_a_purge_takes_texts_of_old_runs_only_and_leaves_the_proof(configured: Services) -> None:
    old, young = completed(configured, Retention.FULL), completed(configured, Retention.FULL)
    pending, _ = begun(configured)
    before = audit(configured.engine, old).receipt
    with configured.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE runs SET completed_at = now() - interval '40 days' WHERE id = :id"), {"id": old}
        )

    said = CliRunner().invoke(purge, ["--older-than", "30d"])

    assert said.stdout == "6 items scrubbed; 1 ended runs were old enough\n"
    assert stored_text(configured).count(SECRET) == 2 * ITEMS + ITEMS
    assert audit(configured.engine, old).receipt == before
    assert all(audit(configured.engine, run_id).sound for run_id in (old, young, pending))


def test_a_purge_that_deletes_names_the_runs_and_waits_for_yes(configured: Services) -> None:
    run_id = completed(configured, Retention.FULL)
    with configured.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET completed_at = now() - interval '40 days'"))

    asked = CliRunner().invoke(purge, ["--older-than", "30d", "--delete"])

    assert asked.stdout == f"{run_id}\n"
    assert audit(configured.engine, run_id).sound

    done = CliRunner().invoke(purge, ["--older-than", "30d", "--delete", "--yes"])

    assert done.stdout.endswith("deleted; 1 ended runs were old enough\n")


def test_a_purge_scrubs_settled_live_items(services: Services) -> None:
    _, chunks = begun(services, lane=Lane.LIVE)
    settlement.settle(services.engine, chatty(chunks[0]))

    purged = retention.purge(services.engine, timedelta(0))

    assert purged.items == 4
    assert stored_text(services).count(SECRET) == 2


def test_deleting_takes_the_whole_run(services: Services) -> None:
    completed(services, Retention.FULL)

    purged = retention.purge(services.engine, timedelta(0), delete=True)

    assert purged == (1, ITEMS)
    assert SECRET not in stored_text(services)
    assert list_runs(services.engine) == []


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "1w", "x"])
def test_an_age_that_makes_no_sense_is_refused(age: str) -> None:
    assert CliRunner().invoke(purge, ["--older-than", age]).exit_code == 2


def test_no_item_may_be_without_text() -> None:
    """What marks a scrubbed item can be no accepted one."""
    with pytest.raises(ValueError, match="empty"):
        Item(id="x", response="")
