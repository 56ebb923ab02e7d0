"""The reconciler puts back what was lost and leaves alone what waits, on real servers."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from infra.broker.app import connect_redis, queue_of
from infra.ledger import intake
from infra.ledger.engine import autocommit
from infra.servers.services import Services
from schemas.messages import JudgeChunk, Lane
from tests.support.make import items, spec, verdicts_for
from worker.collector import reconcile as reconciling
from worker.collector.reconcile import Reconciled, Reconciler

NOTHING = Reconciled()


def enqueued_run(services: Services, count: int, *, chunk: int = 4) -> tuple[str, list[JudgeChunk]]:
    run_id = intake.create_run(services.engine, spec())
    batch = items(count)
    chunks = intake.accept(services.engine, run_id, spec(), [batch[at : at + chunk] for at in range(0, count, chunk)])
    for each in chunks:
        services.publisher.judge(each)
    return run_id, chunks


def reconciler(services: Services, **changes: float) -> Reconciler:
    settings = services.settings.model_copy(update=changes)
    return Reconciler(services.engine, services.coordination, services.publisher, settings)


def looks(services: Services, reconcile: Reconciler, times: int = 3) -> list[Reconciled]:
    """Some looks in a row; all leases have run out in between."""
    found = []
    with autocommit(services.engine) as connection:
        for _ in range(times):
            found.append(reconcile.look(connection))
            connection.execute(sa.text("UPDATE chunks SET overtaken_at = overtaken_at - interval '1 hour'"))
    return found


def test_a_long_backlog_is_never_enqueued_again(services: Services) -> None:
    _, chunks = enqueued_run(services, 400)

    found = looks(services, reconciler(services), times=5)

    assert found == [NOTHING] * 5
    assert services.coordination.queues.length("fake", Lane.BULK) == len(chunks)


def test_what_left_its_queue_and_never_came_back_is_enqueued_again_once(services: Services) -> None:
    _, chunks = enqueued_run(services, 8)
    services.coordination.queues.forget("fake", Lane.BULK)

    found = looks(services, reconciler(services))

    assert [look.requeued for look in found] == [0, 2, 0]
    assert services.coordination.counters.read() == {
        '["libra_reconciler_chunks_total", "fake", "bulk", "requeued"]': "2"
    }
    assert sorted(services.coordination.queues.queued("fake", Lane.BULK)) == sorted(chunk.chunk_id for chunk in chunks)


def test_a_lease_does_not_run_while_nobody_reconciles(services: Services) -> None:
    """A collector that was away, or that waited for Postgres, must not take the time it missed for a loss."""
    enqueued_run(services, 8)
    services.coordination.queues.forget("fake", Lane.BULK)
    looks(services, reconciler(services), times=1)

    (found,) = looks(services, reconciler(services), times=1)

    assert found == NOTHING


def test_a_long_queue_of_verdicts_holds_up_only_the_chunks_that_are_in_it(services: Services) -> None:
    """More than one look takes; in the end each lost chunk is found behind those that are judged."""
    _, chunks = enqueued_run(services, 1_208)
    services.coordination.queues.forget("fake", Lane.BULK)
    for chunk in chunks[:300]:
        services.publisher.settle(verdicts_for(chunk))

    found = looks(services, reconciler(services))

    assert [look.requeued for look in found] == [0, 2, 0]
    assert sorted(services.coordination.queues.queued("fake", Lane.BULK)) == [c.chunk_id for c in chunks[300:]]


def test_who_publishes_late_is_not_overtaken(services: Services) -> None:
    """Two producers commit in one order and publish in the other, and the lane stands still."""
    run_id = intake.create_run(services.engine, spec())
    batch = items(12)
    first, second, third = intake.accept(services.engine, run_id, spec(), [batch[:4], batch[4:8], batch[8:]])
    for chunk in (third, first, second):
        services.publisher.judge(chunk)

    found = looks(services, reconciler(services), times=5)

    assert found == [NOTHING] * 5
    assert services.coordination.queues.length("fake", Lane.BULK) == 3


def test_who_publishes_late_is_found_once_its_message_is_lost(services: Services) -> None:
    run_id = intake.create_run(services.engine, spec())
    batch = items(16)
    groups = [batch[at : at + 4] for at in range(0, 16, 4)]
    first, second, third, fourth = intake.accept(services.engine, run_id, spec(), groups)
    for chunk in (second, first, third, fourth):
        services.publisher.judge(chunk)
    queue = f"libra:{queue_of('fake', Lane.BULK)}"
    for _ in range(3):  # a consumer takes them and dies; the fourth still waits
        connect_redis(services.redis_url).rpop(queue)

    found = looks(services, reconciler(services), times=3)

    assert [look.requeued for look in found] == [0, 3, 0]


def test_a_ledger_whose_clock_went_back_enqueues_nothing_again_that_waits(services: Services) -> None:
    _, before = enqueued_run(services, 8)
    with services.engine.begin() as connection:  # as if the clock had been an hour ahead when these were committed
        connection.execute(sa.text("UPDATE chunks SET enqueued_at = enqueued_at + interval '1 hour'"))
    _, after = enqueued_run(services, 8)

    found = looks(services, reconciler(services), times=5)

    assert found == [NOTHING] * 5
    assert services.coordination.queues.length("fake", Lane.BULK) == len(before) + len(after)


@pytest.mark.parametrize("jump_s", [3_600.0, -3_600.0])
def test_a_lease_is_as_long_as_ever_when_the_ledgers_clock_jumps(
    services: Services, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    enqueued_run(services, 8)
    services.coordination.queues.forget("fake", Lane.BULK)
    reconcile = reconciler(services, bulk_lease_s=30, reconcile_every_s=20)
    own = [0.0]
    monkeypatch.setattr(reconciling.time, "monotonic", lambda: own[0])
    ledger = services.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    found = []
    with autocommit(services.engine) as connection:
        for seconds in (0, 20, 20, 20):
            own[0] += seconds
            # The clock cannot be moved: what it wrote is, with what the reconciler remembers of it.
            moved = seconds + (jump_s if own[0] == 20 else 0.0)
            set_back = sa.text("UPDATE chunks SET overtaken_at = overtaken_at - make_interval(secs => :moved)")
            ledger.execute(set_back, {"moved": moved})
            reconcile._looked = {key: (at - moved, mine) for key, (at, mine) in reconcile._looked.items()}
            found.append(reconcile.look(connection).requeued)
    ledger.close()

    assert found == [0, 0, 2, 0], "after 40 s of its own, whatever the ledger's clock said"


def test_an_error_in_a_look_costs_that_look_only(services: Services) -> None:
    enqueued_run(services, 8)
    services.coordination.queues.forget("fake", Lane.BULK)
    reconcile = reconciler(services)
    held = services.coordination.leases.held

    def broken(queue: str) -> list[str]:
        raise ValueError(queue)

    looks(services, reconcile, times=1)
    services.coordination.leases.held = broken  # type: ignore[method-assign]
    (failed,) = looks(services, reconcile, times=1)
    services.coordination.leases.held = held  # type: ignore[method-assign]
    (found,) = looks(services, reconcile, times=1)

    assert (failed, found.requeued) == (NOTHING, 2)


def test_what_breaks_the_look_at_one_lane_leaves_the_others_alone(services: Services) -> None:
    enqueued_run(services, 8)
    broken_run = intake.create_run(services.engine, spec(guard="broken"))
    intake.accept(services.engine, broken_run, spec(guard="broken"), [items(4)])
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET spec = '{}' WHERE id = :id"), {"id": broken_run})
    services.coordination.queues.forget("fake", Lane.BULK)

    found = looks(services, reconciler(services))

    assert [look.requeued for look in found] == [0, 2, 0]


def test_a_ledger_that_was_set_back_draws_no_ordinal_again_that_the_broker_has_seen(services: Services) -> None:
    _, before = enqueued_run(services, 8)
    with services.engine.begin() as connection:
        connection.execute(sa.text("SELECT setval('chunk_ordinals', 1)"))
    _, behind = enqueued_run(services, 4)

    found = looks(services, reconciler(services), times=4)
    _, after = enqueued_run(services, 4)

    assert found == [NOTHING] * 4, "all of it still waits"
    assert behind[0].ordinal <= before[-1].ordinal < after[0].ordinal


def test_a_chunk_whose_verdicts_wait_for_a_collector_is_not_lost(services: Services) -> None:
    """A collector that starts slowly must not have judged again what it is about to settle."""
    _, chunks = enqueued_run(services, 8)
    services.coordination.queues.forget("fake", Lane.BULK)
    services.publisher.settle(verdicts_for(chunks[0]))

    found = looks(services, reconciler(services))

    assert [look.requeued for look in found] == [0, 1, 0]
    assert services.coordination.queues.queued("fake", Lane.BULK) == [chunks[1].chunk_id]
