"""The ledger on a real Postgres: what is accepted settles exactly once, whatever is delivered."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.errors import DataError, LedgerOutdatedError, RunError, ServerError, UsageError
from infra.ledger import engine as ledger_engine
from infra.ledger import finalizing, intake, recovery, settlement
from infra.ledger.engine import autocommit, fetch_value, open_ledger
from infra.ledger.items import judged_rows, verdict_of
from infra.ledger.recovery import LaneKey
from infra.ledger.runs import run_status
from infra.ledger.stats import cached_count, dead_reasons, run_cost, run_costs
from infra.ledger.tables import metadata
from infra.process import wait_until
from infra.servers.services import Services
from schemas.guards import Mode
from schemas.items import Example, Label
from schemas.messages import JudgeChunk, Lane, MessageError
from schemas.runs import Cost, RunState
from schemas.verdicts import CONTROVERSIAL, Spent
from tests.support.finalizing import claimable
from tests.support.make import FINGERPRINT, items, spec, verdicts_for

BULK = LaneKey("fake", Lane.BULK)


def open_run(services: Services, count: int, *, chunk: int = 4, repeat: int = 1) -> tuple[str, list[JudgeChunk]]:
    run_id = intake.create_run(services.engine, spec(repeat=repeat))
    batch = items(count)
    groups = [batch[start : start + chunk] for start in range(0, count, chunk)]
    return run_id, intake.accept(services.engine, run_id, spec(repeat=repeat), groups)


def counts(services: Services, run_id: str) -> tuple[int, int, int]:
    found = run_status(services.engine, run_id).counts
    return found.accepted, found.settled, found.pending


def _is_no_partition(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or not re.search(r"_(older|others|rm\d{4})$", name or "")


def test_the_migrations_make_exactly_the_declared_tables(services: Services) -> None:
    with services.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": _is_no_partition})
        difference = compare_metadata(context, metadata)

    assert difference == []


def test_the_head_that_the_code_asks_for_is_the_newest_migration() -> None:
    script = ScriptDirectory(str(Path(ledger_engine.__file__).parent / "migrations"))

    assert script.get_current_head() == ledger_engine.HEAD


def test_a_connection_that_the_server_closed_is_replaced_before_it_is_used(services: Services, ledger_url: str) -> None:
    engine = open_ledger(ledger_url, pool_size=1)
    with engine.connect() as connection:
        first = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    # In autocommit: Postgres shows one transaction one and the same pg_stat_activity, however often it asks.
    with autocommit(services.engine) as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": first})
        gone = sa.text("SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = :pid)")
        assert wait_until(lambda: bool(connection.scalar(gone, {"pid": first})), timeout_s=10)

    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT pg_backend_pid()")) != first
    engine.dispose()


def test_the_error_of_a_statement_names_none_of_its_values(services: Services) -> None:
    with pytest.raises(sa.exc.DBAPIError) as refused:
        fetch_value(services.engine, sa.text("SELECT CAST(:text AS int) FROM nowhere"), {"text": "user text"})

    assert "user text" not in str(refused.value)


def test_statements_stay_prepared_over_reads_and_are_each_a_transaction_of_their_own(database_url: str) -> None:
    engine = open_ledger(database_url, pool_size=1)
    with autocommit(engine) as connection:
        driver = connection.connection.driver_connection
    assert driver is not None
    for _ in range(driver.prepare_threshold + 2):
        assert fetch_value(engine, sa.text("SELECT CAST(:n AS int) + 1"), {"n": 1}) == 2
    prepared = list(fetch_value(engine, sa.text("SELECT array_agg(statement) FROM pg_prepared_statements")))

    assert [statement for statement in prepared if "+ 1" in statement]
    engine.dispose()


def test_a_connection_that_was_closed_on_this_side_is_replaced_as_well(database_url: str) -> None:
    engine = open_ledger(database_url, pool_size=1)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
    assert driver is not None
    driver.close()

    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


def test_a_connection_is_asked_whether_it_lives_only_after_a_pause(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_ledger(database_url, pool_size=1)
    asked = []
    monkeypatch.setattr(engine.dialect, "do_ping", asked.append)
    for _ in range(3):
        with engine.connect():
            pass
    assert asked == []

    monkeypatch.setattr("infra.ledger.engine._PING_AFTER_S", 0.0)
    with engine.connect():
        assert len(asked) == 1
    engine.dispose()


def test_a_ledger_that_was_never_migrated_is_refused_with_advice(database_url: str) -> None:
    engine = sa.create_engine(database_url)

    with pytest.raises(ServerError, match="revision none"):
        ledger_engine.require_current(engine)


def test_a_ledger_at_a_revision_that_no_migration_knows_is_refused(database_url: str) -> None:
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version AS SELECT '9999' AS version_num"))

    with pytest.raises(LedgerOutdatedError, match="9999"):
        ledger_engine.upgrade(engine)


def test_migrating_from_many_processes_at_once_is_safe(database_url: str) -> None:
    engines = [sa.create_engine(database_url) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ledger_engine.upgrade, engines))

    assert ledger_engine.current_revision(engines[0]) == ledger_engine.HEAD


def test_a_collector_older_than_the_mark_of_the_cache_goes_on_on_the_migrated_ledger(services: Services) -> None:
    insert = (
        "INSERT INTO verdicts (run_id, seq, iteration, outcome, label, prompt_tokens, windows, attempt) "
        "VALUES ('r', 0, 0, 'scored', 'safe', 1, 1, 1)"
    )
    with services.engine.begin() as connection:
        connection.execute(sa.text(insert))
        assert connection.scalar(sa.text("SELECT cached FROM verdicts")) is False


def test_a_verdict_keeps_its_mark_that_it_came_from_the_cache(services: Services) -> None:
    run_id, (chunk,) = open_run(services, 3)
    answer = verdicts_for(chunk)
    marked = (answer.verdicts[0], answer.verdicts[1].model_copy(update={"cached": True}), answer.verdicts[2])

    settlement.settle(services.engine, answer.model_copy(update={"verdicts": marked}))

    found = verdict_of(services.engine, run_id, [0, 1, 2])
    assert [found[seq].cached for seq in range(3)] == [False, True, False]
    assert cached_count(services.engine, run_id) == 1


@pytest.mark.parametrize(("repeat", "cache"), [(1, True), (2, False)])
def test_chunks_are_judged_as_their_run_says_also_when_they_were_lost(
    services: Services, repeat: int, cache: bool
) -> None:
    shown = (Example(question="", response="x", label=Label.SAFE),)
    asked = spec(repeat=repeat).model_copy(update={"cache": True, "verdict_only": True, "examples": shown})
    run_id = intake.create_run(services.engine, asked)
    chunks = intake.accept(services.engine, run_id, asked, [items(2)])
    with services.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        again = recovery.take_up(connection, recovery.OverdueChunk(run_id, 0, 1))

    assert again is not None
    assert [(chunk.cache, chunk.verdict_only, chunk.examples) for chunk in (*chunks, again)] == [
        (cache, True, shown)
    ] * (repeat + 1)


def test_live_traffic_that_is_judged_otherwise_has_a_run_of_its_own(services: Services) -> None:
    usual = spec(lane=Lane.LIVE).model_copy(update={"mode": Mode.GENERATE, "cache": True, "verdict_only": True})
    specs = [usual.model_copy(update=changes) for changes in ({}, {"cache": False}, {"verdict_only": False})]

    runs = [intake.todays_run(services.engine, each, tenant="t").id for each in [*specs, *specs]]

    assert len(set(runs)) == 3
    assert runs[:3] == runs[3:]


def test_accepted_items_become_chunks_that_carry_their_text_in_order(services: Services) -> None:
    _, chunks = open_run(services, 10, chunk=4)

    assert [[item.seq for item in chunk.items] for chunk in chunks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [chunk.chunk_no for chunk in chunks] == [0, 1, 2]
    assert chunks[2].items[1].response == "text number 9"


def test_every_iteration_of_a_repeated_run_has_its_own_chunks(services: Services) -> None:
    run_id, chunks = open_run(services, 4, chunk=4, repeat=3)

    assert [(chunk.chunk_no, chunk.iteration) for chunk in chunks] == [(0, 0), (1, 1), (2, 2)]
    assert counts(services, run_id) == (4, 0, 12)


def test_a_duplicate_id_is_refused_and_nothing_of_its_batch_is_accepted(services: Services) -> None:
    run_id, _ = open_run(services, 4)

    with pytest.raises(DataError, match="item-3"):
        intake.accept(services.engine, run_id, spec(), [items(4)[3:], items(2, prefix="new")])

    assert counts(services, run_id) == (4, 0, 4)


def test_a_sealed_run_takes_no_more_items(services: Services) -> None:
    run_id, _ = open_run(services, 4)
    intake.seal(services.engine, run_id)

    with pytest.raises(RunError, match="no more items"):
        intake.accept(services.engine, run_id, spec(), [items(1, prefix="late")])


def test_a_chunk_delivered_twice_settles_once(services: Services) -> None:
    run_id, chunks = open_run(services, 4)
    first = settlement.settle(services.engine, verdicts_for(chunks[0]))

    again = settlement.settle(services.engine, verdicts_for(chunks[0], label=Label.UNSAFE))

    assert (first.inserted, again.inserted) == (4, 0)
    assert verdict_of(services.engine, run_id, [0])[0].label is Label.SAFE
    assert counts(services, run_id) == (4, 4, 0)


def test_what_chunks_cost_is_summed_by_run_and_counts_no_delivery_twice(services: Services) -> None:
    run_id, chunks = open_run(services, 12)
    spent = Spent(device="H", device_s=0.5, prompt_tokens=100, new_tokens=7)
    judged = [verdicts_for(chunk).model_copy(update={"spent": spent}) for chunk in chunks[:2]]
    again = judged[1].model_copy(update={"spent": spent.model_copy(update={"device_s": 9.0})})
    for chunk in (*judged, again, verdicts_for(chunks[2])):
        settlement.settle(services.engine, chunk)
    tenants = [
        intake.create_run(services.engine, spec().model_copy(update={"tenant": tenant}), name=tenant)
        for tenant in ("a", "b")
    ]
    batch = intake.accept(services.engine, tenants[1], spec(), [items(3)])
    settlement.settle(services.engine, verdicts_for(batch[0]).model_copy(update={"spent": spent}))

    cost = Cost(verdicts=12, measured=8, device_s=1.0, prompt_tokens=200, new_tokens=14, devices=("H",))
    assert run_cost(services.engine, run_id) == cost
    assert run_cost(services.engine, tenants[0]) == Cost()
    assert [one.name for one in run_costs(services.engine, tenant="b")] == ["b"]
    total = sum((one.cost for one in run_costs(services.engine)), Cost())
    assert (total.verdicts, total.measured, total.device_s) == (15, 11, 1.5)
    assert cost.per_1000(cost.device_s) == 125.0
    assert cost.per_1000(cost.money(3.6)) == pytest.approx(0.125)


def test_only_the_settlement_that_reaches_the_sealed_count_finishes_the_run(services: Services) -> None:
    run_id, chunks = open_run(services, 8)
    early = settlement.settle(services.engine, verdicts_for(chunks[0]))
    assert intake.seal(services.engine, run_id) is False

    last = settlement.settle(services.engine, verdicts_for(chunks[1]))

    assert (early.finished, last.finished) == (False, True)


def test_sealing_a_run_that_has_settled_already_finishes_it(services: Services) -> None:
    run_id, chunks = open_run(services, 4)
    settlement.settle(services.engine, verdicts_for(chunks[0]))

    assert intake.seal(services.engine, run_id) is True


def test_concurrent_collectors_finish_a_run_exactly_once(services: Services) -> None:
    run_id, chunks = open_run(services, 160, chunk=4)
    intake.seal(services.engine, run_id)
    messages = [verdicts_for(chunk) for chunk in chunks] * 2

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda message: settlement.settle(services.engine, message), messages))

    assert sum(result.finished for result in results) == 1
    assert sum(result.inserted for result in results) == 160
    assert counts(services, run_id) == (160, 160, 0)


def test_chunks_settled_together_settle_as_if_alone_and_the_last_one_finishes_the_run(services: Services) -> None:
    runs = [open_run(services, 12) for _ in range(2)]
    for run_id, _ in runs:
        intake.seal(services.engine, run_id)
    messages = [verdicts_for(chunk) for pair in zip(*(chunks for _, chunks in runs), strict=True) for chunk in pair]
    settlement.settle(services.engine, messages[0])

    outcomes = [o for o in settlement.settle_all(services.engine, messages) if isinstance(o, settlement.Settled)]

    assert [o[:2] for o in outcomes] == [(0, False), (4, False), (4, False), (4, False), (4, True), (4, True)]
    assert [counts(services, run_id) for run_id, _ in runs] == [(12, 12, 0)] * 2


def test_a_refused_chunk_costs_those_settled_with_it_nothing(services: Services) -> None:
    run_id, chunks = open_run(services, 12)
    other = FINGERPRINT.model_copy(update={"dtype": "float16"})
    messages = [
        verdicts_for(chunks[0]),
        verdicts_for(chunks[1], seqs=[0]),
        verdicts_for(chunks[1], fingerprint=other),
        verdicts_for(chunks[2]),
    ]

    good, foreign, mismatch, last = settlement.settle_all(services.engine, messages)

    assert good == last == settlement.Settled(4, False, "fake", "bulk", scored=4)
    assert isinstance(foreign, MessageError)
    assert isinstance(mismatch, settlement.FingerprintMismatchError)
    assert counts(services, run_id) == (12, 8, 4)


def test_two_copies_of_a_chunk_at_once_and_an_item_named_twice_settle_once(services: Services) -> None:
    run_id, chunks = open_run(services, 8)
    twice = verdicts_for(chunks[1], seqs=[4, 5, 4])

    outcomes = settlement.settle_all(services.engine, [verdicts_for(chunks[0]), verdicts_for(chunks[0]), twice])

    assert [outcome.inserted for outcome in outcomes if isinstance(outcome, settlement.Settled)] == [4, 0, 2]
    assert counts(services, run_id) == (8, 6, 2)


def test_verdicts_of_foreign_items_are_refused(services: Services) -> None:
    _, chunks = open_run(services, 8)

    with pytest.raises(MessageError, match="not its own"):
        settlement.settle(services.engine, verdicts_for(chunks[0], seqs=[7]))


def test_verdicts_of_an_unknown_chunk_are_refused(services: Services) -> None:
    _, chunks = open_run(services, 4)

    with pytest.raises(MessageError, match="not in the ledger"):
        settlement.settle(services.engine, verdicts_for(chunks[0].model_copy(update={"chunk_no": 99})))


def test_a_bulk_run_is_pinned_to_the_first_fingerprint_that_settles(services: Services) -> None:
    run_id, chunks = open_run(services, 8)
    settlement.settle(services.engine, verdicts_for(chunks[0]))
    other = FINGERPRINT.model_copy(update={"dtype": "float16"})

    with pytest.raises(settlement.FingerprintMismatchError):
        settlement.settle(services.engine, verdicts_for(chunks[1], fingerprint=other))

    assert counts(services, run_id) == (8, 4, 4)
    assert run_status(services.engine, run_id).fingerprint == FINGERPRINT.digest


def test_cancelling_settles_what_is_pending_as_dead_and_a_late_verdict_changes_nothing(services: Services) -> None:
    run_id, chunks = open_run(services, 8)
    settlement.settle(services.engine, verdicts_for(chunks[0]))

    cancelled = settlement.cancel(services.engine, run_id)
    late = settlement.settle(services.engine, verdicts_for(chunks[1]))

    assert (cancelled.inserted, cancelled.finished, late.inserted) == (4, True, 0)
    assert dead_reasons(services.engine, run_id) == {"cancelled": 4}
    assert claimable(services, run_id)
    with pytest.raises(UsageError, match="ended"):
        settlement.cancel(services.engine, run_id)


def test_a_run_cancelled_while_its_producer_submits_has_nothing_left_pending(services: Services) -> None:
    run_id, _ = open_run(services, 4)

    def submit_on(worker: int) -> None:
        for batch in range(1_000):
            with suppress(RunError):
                intake.accept(services.engine, run_id, spec(), [items(4, prefix=f"{worker}-{batch}")])
                continue
            return

    with ThreadPoolExecutor(2) as pool:
        submissions = [pool.submit(submit_on, worker) for worker in range(2)]
        assert wait_until(lambda: counts(services, run_id)[0] > 40, timeout_s=30)
        settlement.cancel(services.engine, run_id)
        for submission in submissions:
            submission.result()

    accepted, settled, pending = counts(services, run_id)
    assert (settled, pending) == (accepted, 0)


def test_the_database_itself_forbids_more_settled_than_accepted(services: Services) -> None:
    run_id, _ = open_run(services, 4)

    with pytest.raises(sa.exc.IntegrityError, match="ck_runs_pending"), services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET settled = 5, scored = 5 WHERE id = :id"), {"id": run_id})


def test_a_chunk_is_lost_only_when_a_later_one_was_dispatched_a_lease_ago(services: Services) -> None:
    _, chunks = open_run(services, 8)
    with autocommit(services.engine) as connection:
        recovery.note_overtaken(connection, BULK, watermark=chunks[0].ordinal, held=[])
        while_queued = recovery.overdue(connection, BULK, lease_s=0)
        recovery.note_overtaken(connection, BULK, watermark=chunks[-1].ordinal + 1, held=[])
        in_lease = recovery.overdue(connection, BULK, lease_s=60)
        after_lease = recovery.overdue(connection, BULK, lease_s=0)

    assert (while_queued, in_lease) == ([], [])
    assert sorted(chunk.chunk_no for chunk in after_lease) == [0, 1]


def test_a_chunk_that_a_consumer_holds_is_never_lost(services: Services) -> None:
    _, chunks = open_run(services, 8)
    held = [chunks[0].chunk_id]
    with autocommit(services.engine) as connection:
        recovery.note_overtaken(connection, BULK, watermark=chunks[-1].ordinal + 1, held=held)
        connection.execute(sa.text("UPDATE chunks SET overtaken_at = overtaken_at - interval '100 seconds'"))
        recovery.note_overtaken(connection, BULK, watermark=chunks[-1].ordinal + 1, held=held)

        overdue = recovery.overdue(connection, BULK, lease_s=60)

    assert [chunk.chunk_no for chunk in overdue] == [1]


def test_a_chunk_put_back_on_the_queue_has_no_lease_running(services: Services) -> None:
    _, chunks = open_run(services, 4)
    with autocommit(services.engine) as connection:
        recovery.note_overtaken(connection, BULK, watermark=chunks[0].ordinal + 1, held=[])
        recovery.note_overtaken(connection, BULK, watermark=chunks[0].ordinal - 1, held=[])

        assert recovery.overdue(connection, BULK, lease_s=0) == []


def test_taking_up_a_lost_chunk_carries_only_what_is_pending_and_only_once(services: Services) -> None:
    _, chunks = open_run(services, 4)
    settlement.settle(services.engine, verdicts_for(chunks[0], seqs=[1, 2]))
    with autocommit(services.engine) as connection:
        recovery.note_overtaken(connection, BULK, watermark=chunks[0].ordinal + 1, held=[])
        (lost,) = recovery.overdue(connection, BULK, lease_s=0)

        again = recovery.take_up(connection, lost)
        twice = recovery.take_up(connection, lost)

    assert again is not None
    assert [item.seq for item in again.items] == [0, 3]
    assert (again.attempt, again.chunk_no) == (2, chunks[0].chunk_no)
    assert again.ordinal > chunks[0].ordinal
    assert twice is None


def test_one_process_leads_until_it_resigns_or_is_silent_for_a_lease(services: Services) -> None:
    with autocommit(services.engine) as connection:

        def leads(holder: str) -> bool:
            return recovery.lead(connection, holder, lease_s=60)

        assert (leads("a"), leads("b"), leads("a")) == (True, False, True)
        recovery.resign(services.engine, "b")
        assert not leads("b")
        recovery.resign(services.engine, "a")
        assert (leads("b"), leads("a")) == (True, False)
        connection.execute(sa.text("UPDATE leaders SET lease_until = now() - interval '1 second'"))
        assert (leads("a"), leads("b")) == (True, False)


def test_a_lease_that_a_clock_set_back_has_left_far_ahead_is_over(services: Services) -> None:
    run_id, chunks = open_run(services, 4)
    settlement.settle(services.engine, verdicts_for(chunks[0]))
    intake.seal(services.engine, run_id)
    assert finalizing.claim(services.engine, run_id, lease_s=60) is not None
    with autocommit(services.engine) as connection:
        recovery.lead(connection, "gone", lease_s=60)
        assert recovery.unfinished(connection, lease_s=60) == []
        assert finalizing.claim(services.engine, run_id, lease_s=60) is None

        for table in ("leaders", "runs"):
            connection.execute(sa.text(f"UPDATE {table} SET lease_until = lease_until + interval '1 hour'"))  # noqa: S608

        assert recovery.lead(connection, "here", lease_s=60)
        assert recovery.unfinished(connection, lease_s=60) == [run_id]
    assert finalizing.claim(services.engine, run_id, lease_s=60) is not None


def test_of_many_processes_at_once_one_leads(services: Services) -> None:
    def candidate(name: int) -> bool:
        with autocommit(services.engine) as connection:
            return recovery.lead(connection, str(name), lease_s=60)

    with ThreadPoolExecutor(6) as pool:
        leading = list(pool.map(candidate, range(24)))

    assert sum(leading) == 1


def test_a_name_is_used_once(services: Services) -> None:
    intake.create_run(services.engine, spec(), name="mine")

    with pytest.raises(UsageError, match="mine"):
        intake.create_run(services.engine, spec(), name="mine")


def test_live_traffic_of_a_day_shares_one_unsealed_run(services: Services) -> None:
    live = spec(lane=Lane.LIVE)

    runs = {intake.todays_run(services.engine, live, tenant="t").id for _ in range(3)}

    assert len(runs) == 1
    assert intake.todays_run(services.engine, live, tenant="other").id not in runs


@given(data=st.data())
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_deliveries_settles_every_item_exactly_once(services: Services, data: st.DataObject) -> None:
    """Partial chunks, duplicates, reorderings, an early or late seal: accepted = settled + pending throughout."""
    run_id, chunks = open_run(services, data.draw(st.integers(1, 12)), chunk=3)
    partial = st.sampled_from(chunks).flatmap(
        lambda chunk: st.lists(st.sampled_from([item.seq for item in chunk.items]), min_size=1, unique=True).map(
            lambda seqs: verdicts_for(chunk, seqs=seqs)
        )
    )
    deliveries = data.draw(st.lists(partial, max_size=8)) + data.draw(
        st.permutations([verdicts_for(chunk) for chunk in chunks])
    )
    seal_at = data.draw(st.integers(0, len(deliveries)))
    finished = 0
    for step, delivery in enumerate([*deliveries, None]):
        if step == seal_at:
            finished += intake.seal(services.engine, run_id)
        if delivery is not None:
            finished += settlement.settle(services.engine, delivery).finished
        accepted, settled, pending = counts(services, run_id)
        assert accepted == settled + pending

    assert finished == 1
    assert counts(services, run_id)[2] == 0
    assert run_status(services.engine, run_id).state is RunState.SEALED


def test_a_controversial_verdict_comes_back_as_one_for_the_report(services: Services) -> None:
    run_id, (chunk,) = open_run(services, 2)
    message = verdicts_for(chunk)
    named = [("S1:violence", CONTROVERSIAL), ("controversially",)]
    verdicts = [
        verdict.model_copy(update={"categories": names}) for verdict, names in zip(message.verdicts, named, strict=True)
    ]
    settlement.settle(services.engine, message.model_copy(update={"verdicts": tuple(verdicts)}))

    assert [row.controversial for row in judged_rows(services.engine, run_id)] == [True, False]
