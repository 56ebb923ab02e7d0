"""A replica that lacks the last commits is promoted: the broker is then ahead of the ledger.

The replica is a copy of the ledger's database, taken before these commits. Verdicts are derived from the texts that
were judged, so that one that lands on another text shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from infra.broker.queues import Task
from infra.coordination.leases import Delivery
from infra.ledger import intake, settlement
from infra.ledger.audit import audit
from infra.ledger.engine import autocommit
from infra.ledger.items import verdict_of
from infra.ledger.runs import run_status
from infra.servers.embedded import ServerUrls
from infra.servers.services import Services
from infra.settings import Settings
from schemas.items import Item, Label
from schemas.messages import JudgeChunk, Lane, MessageError, VerdictChunk
from schemas.verdicts import Outcome, Timings, Verdict
from tests.support.database import fresh_database
from tests.support.make import FINGERPRINT, spec
from worker.collector.reconcile import Reconciler

Promote = Callable[[], Services]


def texts(*words: str) -> list[Item]:
    return [Item(id=word, response=word) for word in words]


def judge(chunk: JudgeChunk) -> VerdictChunk:
    """A worker whose guard blocks what begins with "bad"."""
    labels = {item.seq: Label.UNSAFE if item.response.startswith("bad") else Label.SAFE for item in chunk.items}
    return VerdictChunk(
        run_id=chunk.run_id,
        chunk_no=chunk.chunk_no,
        attempt=chunk.attempt,
        worker="w",
        fingerprint=FINGERPRINT,
        timings=Timings(),
        verdicts=tuple(
            Verdict(seq=seq, outcome=Outcome.SCORED, label=label, p_unsafe=0.5, label_mass=1.0)
            for seq, label in labels.items()
        ),
        nonce=chunk.nonce,
    )


def deliver(services: Services, chunk: JudgeChunk) -> Delivery:
    with services.coordination.queues.transaction() as pipe:
        return services.coordination.leases.take(pipe, Task.of(chunk), "guard.fake.live", "w/1")


def labels(services: Services, run_id: str, count: int) -> list[Label | None]:
    found = verdict_of(services.engine, run_id, list(range(count)))
    return [found[seq].label if seq in found else None for seq in range(count)]


def settle_and_tell(services: Services, chunk: JudgeChunk) -> None:
    settlement.settle(services.engine, judge(chunk))
    services.coordination.notices.settled([judge(chunk)])


def taken_up(services: Services) -> list[JudgeChunk]:
    """What a reconciler puts on the queue again when all leases have run out, as a worker would read it."""
    queued: list[JudgeChunk] = []
    publisher = type("Noting", (), {"judge": lambda _, chunk: queued.append(chunk), "finalize": lambda *_: None})()
    reconciler = Reconciler(services.engine, services.coordination, publisher, services.settings)
    with autocommit(services.engine) as connection:
        reconciler.look(connection)
        connection.execute(sa.text("UPDATE chunks SET overtaken_at = overtaken_at - interval '1 hour'"))
        reconciler.look(connection)
    return queued


@pytest.fixture
def replica(services: Services, servers: ServerUrls, settings: Settings) -> Iterator[Promote]:
    """Call it when the replica stops following, and what it gives when the replica is promoted."""
    opened: list[Services] = []
    databases = []

    def stops_following() -> Services:
        services.engine.dispose()  # Postgres copies no database that somebody is connected to
        copy = fresh_database(servers, copy_of=str(services.engine.url.database))
        databases.append(copy)
        opened.append(Services(settings, services.redis_url, copy.__enter__(), embedded=True))
        return opened[-1]

    yield stops_following
    for each in opened:
        each.engine.dispose()
    for copy in databases:
        copy.__exit__(None, None, None)


@pytest.mark.parametrize("judged", ["before the failover", "after it"])
def test_a_verdict_on_a_text_that_was_lost_lands_on_no_other_text(
    services: Services, replica: Promote, judged: str
) -> None:
    live = spec(lane=Lane.LIVE)
    run_id = intake.create_run(services.engine, live)
    promoted = replica()
    (lost,) = intake.accept(services.engine, run_id, live, [texts("bad 1", "bad 2")])
    if judged == "before the failover":
        services.publisher.settle(judge(lost))
    (kept,) = intake.accept(promoted.engine, run_id, live, [texts("good 1", "good 2")])
    assert (lost.chunk_id, lost.items[0].seq) == (kept.chunk_id, kept.items[0].seq), "the numbers are used again"

    with pytest.raises(MessageError, match="another commit"):
        settlement.settle(promoted.engine, judge(lost))
    settlement.settle(promoted.engine, judge(kept))

    assert labels(promoted, run_id, 2) == [Label.SAFE, Label.SAFE]
    assert audit(promoted.engine, run_id).sound


def test_one_refused_chunk_costs_those_it_would_have_settled_with_nothing(services: Services, replica: Promote) -> None:
    run_id = intake.create_run(services.engine, spec())
    promoted = replica()
    (lost,) = intake.accept(services.engine, run_id, spec(), [texts("bad 1")])
    kept = intake.accept(promoted.engine, run_id, spec(), [texts("good 1"), texts("good 2")])

    outcomes = settlement.settle_all(promoted.engine, [judge(lost), judge(kept[1])])

    assert [isinstance(outcome, MessageError) for outcome in outcomes] == [True, False]
    assert labels(promoted, run_id, 2) == [None, Label.SAFE]


def test_a_settlement_that_was_lost_is_judged_again(services: Services, replica: Promote) -> None:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [texts("bad 1", "good 1")])
    promoted = replica()
    settle_and_tell(services, chunk)
    assert deliver(services, chunk).settled, "a copy of the message is skipped"

    (again,) = taken_up(promoted)

    assert not deliver(promoted, again).settled
    settle_and_tell(promoted, again)
    assert labels(promoted, run_id, 2) == [Label.UNSAFE, Label.SAFE]
    assert deliver(promoted, again).settled


def test_a_note_of_a_lost_settlement_that_comes_late_holds_up_no_later_attempt(
    services: Services, replica: Promote
) -> None:
    """A collector of the old primary may say so after the reconciler of the new one has taken the chunk up again."""
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [texts("bad 1")])
    promoted = replica()
    settlement.settle(services.engine, judge(chunk))

    (again,) = taken_up(promoted)
    services.coordination.notices.settled([judge(chunk)])

    assert not deliver(promoted, again).settled


def test_a_second_attempt_that_was_lost_with_its_settlement_is_made_again(services: Services, replica: Promote) -> None:
    """The replica knows of one attempt only, the note is of the second."""
    run_id = intake.create_run(services.engine, spec())
    intake.accept(services.engine, run_id, spec(), [texts("bad 1")])
    promoted = replica()
    (second,) = taken_up(services)
    settle_and_tell(services, second)

    (again,) = taken_up(promoted)

    assert again.attempt == second.attempt
    assert not deliver(promoted, again).settled


def test_a_cancellation_that_was_lost_holds_up_no_item(services: Services, replica: Promote) -> None:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [texts("bad 1")])
    promoted = replica()
    settlement.cancel(services.engine, run_id)
    services.coordination.notices.cancelled(run_id)
    assert deliver(services, chunk).cancelled

    (again,) = taken_up(promoted)

    assert not deliver(promoted, again).cancelled
    settle_and_tell(promoted, again)
    assert labels(promoted, run_id, 1) == [Label.UNSAFE]


def test_what_is_noted_of_a_lost_chunk_is_not_taken_for_the_one_of_its_number(
    services: Services, replica: Promote
) -> None:
    """Neither that it settled, nor how many consumers it has killed."""
    run_id = intake.create_run(services.engine, spec())
    promoted = replica()
    (lost,) = intake.accept(services.engine, run_id, spec(), [texts("bad 1")])
    for _ in range(4):
        deliver(services, lost)
    settlement.settle(services.engine, judge(lost))
    (kept,) = intake.accept(promoted.engine, run_id, spec(), [texts("good 1")])

    assert deliver(promoted, kept) == Delivery(deliveries=1, settled=False, cancelled=False)
    services.coordination.notices.settled([judge(lost)])
    assert not deliver(promoted, kept).settled


def test_chunks_of_before_there_were_nonces_settle_by_messages_without_one(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [texts("bad 1")])
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE chunks SET nonce = NULL, ordinal = NULL"))
    old = chunk.model_copy(update={"nonce": "", "ordinal": 0})

    with pytest.raises(MessageError, match="another commit"):
        settlement.settle(services.engine, judge(chunk))
    settlement.settle(services.engine, judge(old))

    assert labels(services, run_id, 1) == [Label.UNSAFE]
    assert audit(services.engine, run_id).sound


def test_a_chunk_of_before_there_were_ordinals_is_taken_up_again_like_any(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    intake.accept(services.engine, run_id, spec(), [texts("bad 1")])
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE chunks SET nonce = NULL, ordinal = NULL"))

    (again,) = taken_up(services)

    assert (again.nonce, again.attempt) == ("", 2)
    assert again.ordinal > 0
    settlement.settle(services.engine, judge(again))
    assert run_status(services.engine, run_id).counts.pending == 0


def test_a_worker_that_knows_no_nonces_settles_and_verify_counts_what_it_cannot_vouch_for(services: Services) -> None:
    """While a fleet is upgraded machine by machine, workers of both versions judge."""
    run_id = intake.create_run(services.engine, spec())
    first, second = intake.accept(services.engine, run_id, spec(), [texts("bad 1"), texts("good 1")])

    settlement.settle(services.engine, judge(first).model_copy(update={"nonce": None}))
    settlement.settle(services.engine, judge(second))

    checks = {check.name: check for check in audit(services.engine, run_id).checks}
    assert checks["chunks were judged as they were committed"].found == "2 judged, 1 by workers that name no commit"
    assert audit(services.engine, run_id).sound


def test_a_message_of_before_there_were_nonces_settles_no_chunk_that_has_one(services: Services) -> None:
    """A worker that knows of nonces says that the message it read had none."""
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [texts("good 1")])

    with pytest.raises(MessageError, match="another commit"):
        settlement.settle(services.engine, judge(chunk.model_copy(update={"nonce": ""})))


def test_verify_finds_a_chunk_that_was_judged_as_another_commit(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [texts("good 1")])
    settlement.settle(services.engine, judge(chunk))
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE chunks SET judged_nonce = 'other'"))

    assert [check.name for check in audit(services.engine, run_id).checks if check.breaches] == [
        "chunks were judged as they were committed"
    ]
