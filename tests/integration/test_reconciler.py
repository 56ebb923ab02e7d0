"""The reconciler puts back what was lost and leaves alone what waits, on real servers."""

from __future__ import annotations

import sqlalchemy as sa

from infra.broker.app import VERDICTS, connect_redis
from infra.ledger import intake, recovery
from infra.servers.services import Services
from schemas.messages import JudgeChunk, Lane
from tests.support.make import items, spec, verdicts_for
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
    with recovery.reconciler_lock(services.engine) as connection:
        assert connection is not None
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

    with recovery.reconciler_lock(services.engine) as connection:
        assert connection is not None
        recovery.restart_leases(connection)
        found = reconciler(services).look(connection)

    assert found == NOTHING


def test_no_lease_runs_out_while_verdicts_wait_in_a_long_queue(services: Services) -> None:
    _, chunks = enqueued_run(services, 8)
    services.coordination.queues.forget("fake", Lane.BULK)
    for _ in range(257):
        services.publisher.settle(verdicts_for(chunks[0]))

    behind = looks(services, reconciler(services))
    connect_redis(services.redis_url).delete(f"libra:{VERDICTS}")
    caught_up = looks(services, reconciler(services))

    assert behind == [NOTHING] * 3
    assert sum(look.requeued for look in caught_up) == 2


def test_a_chunk_whose_verdicts_wait_for_a_collector_is_not_lost(services: Services) -> None:
    """A collector that starts slowly must not have judged again what it is about to settle."""
    _, chunks = enqueued_run(services, 8)
    services.coordination.queues.forget("fake", Lane.BULK)
    services.publisher.settle(verdicts_for(chunks[0]))

    found = looks(services, reconciler(services))

    assert [look.requeued for look in found] == [0, 1, 0]
    assert services.coordination.queues.queued("fake", Lane.BULK) == [chunks[1].chunk_id]
