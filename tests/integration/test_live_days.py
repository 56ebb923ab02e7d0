"""What has no end of its own: a day's run of live traffic is ended after its day, and purged like any other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from infra.ledger import engine, intake, retention, settlement
from infra.ledger.engine import autocommit
from infra.ledger.runs import find_run, list_runs
from infra.servers.services import Services
from producer.intake.live import LiveClient, live_spec
from schemas.guards import Mode
from schemas.runs import RunState
from tests.support.finalizing import finalizer
from tests.support.make import items, spec, verdicts_for
from worker.collector.reconcile import Reconciler

SPEC = live_spec("acme", "fake", Mode.SCORE)


def day_run(services: Services, *, hours_ago: float, settled: bool = True) -> str:
    """The run of the day that ended so many hours ago, with six items."""
    run_id, _ = intake.todays_run(services.engine, SPEC, tenant="acme")
    chunks = intake.accept(services.engine, run_id, SPEC, [items(6)])
    if settled:
        settlement.settle(services.engine, verdicts_for(chunks[0]))
    # The day's end cannot be moved: the run is opened on an earlier day, as many whole days ago as needed.
    opened = sa.text(
        """
        UPDATE runs SET name = name || '-old', created_at = date_trunc('day', now() AT TIME ZONE 'UTC')
            AT TIME ZONE 'UTC' - interval '1 second' - make_interval(days => :days)
        """
    )
    settled_at = sa.text("UPDATE verdicts SET settled_at = now() - make_interval(hours => :hours)")
    with services.engine.begin() as connection:
        connection.execute(opened, {"days": int(hours_ago // 24)})
        connection.execute(settled_at, {"hours": hours_ago})
    return run_id


def reconcile(services: Services) -> None:
    with autocommit(services.engine) as connection:
        Reconciler(services.engine, services.coordination, services.publisher, services.settings).look(connection)


def test_a_day_of_live_traffic_is_completed_some_hours_after_it(services: Services) -> None:
    run_id = day_run(services, hours_ago=48)

    reconcile(services)
    finalizer(services).finalize(run_id)

    run = find_run(services.engine, run_id)
    assert run is not None
    assert run.state is RunState.COMPLETE


def test_todays_run_and_a_users_own_live_run_stay_open(services: Services) -> None:
    today, _ = intake.todays_run(services.engine, SPEC, tenant="acme")
    own = intake.create_run(services.engine, spec(lane=SPEC.lane))
    with services.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE runs SET created_at = now() - interval '9 days' WHERE id = :id"), {"id": own}
        )

    reconcile(services)

    assert {run.id for run in list_runs(services.engine) if run.state is RunState.OPEN} == {today, own}


def test_an_item_of_a_past_day_that_is_pending_settles_before_its_run_completes(services: Services) -> None:
    run_id = day_run(services, hours_ago=48, settled=False)

    reconcile(services)
    finalizer(services).finalize(run_id)
    sealed = find_run(services.engine, run_id)
    settlement.settle_dead(services.engine, run_id, [0], "a reason")
    finalizer(services).finalize(run_id)

    ended = find_run(services.engine, run_id)
    assert sealed is not None
    assert ended is not None
    assert (sealed.state, ended.state) == (RunState.SEALED, RunState.COMPLETE)


def test_a_client_that_knows_the_past_days_run_goes_on_in_another(services: Services) -> None:
    with LiveClient(services, guard="fake", tenant="acme") as client:
        (before,) = client.submit(items(1, prefix="a"))
        with services.engine.begin() as connection:
            connection.execute(sa.text("UPDATE runs SET created_at = now() - interval '9 days'"))
        reconcile(services)
        (after,) = client.submit(items(1, prefix="b"))

    assert before.run_id != after.run_id


@pytest.mark.parametrize("reported", [True, False])
def test_a_purge_deletes_old_days_whether_or_not_a_collector_ended_them(services: Services, *, reported: bool) -> None:
    run_id = day_run(services, hours_ago=24 * 400)
    if reported:
        reconcile(services)
        finalizer(services).finalize(run_id)

    purged = retention.purge(services.engine, timedelta(days=30), delete=True)

    assert purged == (1, 6)
    with services.engine.connect() as connection:
        left = {
            table.name: connection.scalar(sa.select(sa.func.count()).select_from(table))
            for table in (*retention._OF_A_RUN, retention.chunks, retention.runs)
        }
    assert set(left.values()) == {0}, left


def test_a_purge_deletes_no_day_that_has_pending_items(services: Services) -> None:
    run_id = day_run(services, hours_ago=24 * 400, settled=False)

    retention.purge(services.engine, timedelta(days=30), delete=True)

    assert find_run(services.engine, run_id) is not None


def test_a_purge_works_in_bounded_transactions(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement touches more than a span, and one that is broken off is gone on with."""
    monkeypatch.setattr(retention, "_SPAN", 2)
    run_id = day_run(services, hours_ago=24 * 400)
    touched: list[int] = []
    sa.event.listen(services.engine, "after_cursor_execute", lambda *call: touched.append(call[1].rowcount))

    scrubbed = retention.purge(services.engine, timedelta(days=30))
    with monkeypatch.context() as patch:
        patch.setattr(retention, "execute", _failing_after(1))
        with pytest.raises(InterruptedError):
            retention.purge(services.engine, timedelta(days=30), delete=True)
    deleted = retention.purge(services.engine, timedelta(days=30), delete=True)

    assert scrubbed == (1, 6)
    assert deleted.runs == 1
    assert find_run(services.engine, run_id) is None
    assert max(touched) <= 2


def _failing_after(calls: int) -> Callable[..., int]:
    real, left = engine.execute, [calls]

    def execute(*given: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise InterruptedError
        return real(*given)

    return execute
