"""Reports beside the settling: one process computes a report, under a lease that it renews, and every run ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from infra.ledger import finalizing, intake, settlement
from infra.ledger.engine import fetch_value
from infra.ledger.finalizing import Claim
from infra.ledger.runs import run_status, stored_report
from infra.process import wait_until
from infra.servers.services import Services
from schemas.messages import JudgeChunk
from schemas.runs import RunReport, RunState
from tests.support.finalizing import claimable, finalizer
from tests.support.fleet import Fleet, children
from tests.support.make import items, spec, verdicts_for
from worker.collector import finalizer as ending
from worker.collector.finalizer import Finalizer
from worker.collector.reconcile import Reconciler
from worker.collector.report import build_report
from worker.collector.tasks import ShuttingDownError


@pytest.fixture
def settled(services: Services) -> str:
    """A sealed run whose items have all settled."""
    run_id = intake.create_run(services.engine, spec())
    for chunk in intake.accept(services.engine, run_id, spec(), [items(4)]):
        settlement.settle(services.engine, verdicts_for(chunk))
    intake.seal(services.engine, run_id)
    return run_id


def claim(services: Services, run_id: str, lease_s: float = 60) -> Claim:
    taken = finalizing.claim(services.engine, run_id, lease_s=lease_s)
    assert taken is not None
    return taken


def lease_runs_out(services: Services) -> None:
    with services.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET lease_until = now() - interval '1 second'"))


def computes(monkeypatch: pytest.MonkeyPatch, during: Callable[[], None]) -> None:
    """Have something happen while a report is computed."""

    def slow(*given: Any, **options: Any) -> RunReport:
        during()
        options["check"]()
        return build_report(*given, **options)

    monkeypatch.setattr(ending, "build_report", slow)


def test_one_process_holds_the_lease_and_another_takes_over_when_it_ran_out(services: Services, settled: str) -> None:
    first = claim(services, settled)
    assert not claimable(services, settled)

    lease_runs_out(services)

    assert (first.attempt, claim(services, settled).attempt) == (1, 2)


def test_who_was_stopped_for_longer_than_its_lease_can_neither_keep_the_run_nor_store_its_report(
    services: Services, settled: str
) -> None:
    late = claim(services, settled)
    lease_runs_out(services)
    now = claim(services, settled)
    report = build_report(services.engine, settled)

    assert not finalizing.renew(services.engine, late, lease_s=60)
    assert not finalizing.complete(services.engine, late, report)
    assert run_status(services.engine, settled).state is RunState.FINALIZING
    assert finalizing.complete(services.engine, now, report)
    assert not finalizing.complete(services.engine, now, report), "once"
    assert run_status(services.engine, settled).state is RunState.COMPLETE


def test_a_report_that_takes_longer_than_its_lease_is_computed_once(
    services: Services, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_s = 0.5
    computed = []

    def outlive_the_lease() -> None:
        computed.append(settled)
        until = sa.text("SELECT lease_until FROM runs WHERE id = :run")
        first = fetch_value(services.engine, until, {"run": settled})
        over = sa.text("SELECT clock_timestamp() > :first")
        assert wait_until(lambda: fetch_value(services.engine, over, {"first": first}), timeout_s=30)
        assert not claimable(services, settled)

    computes(monkeypatch, outlive_the_lease)

    finalizer(services, lease_s=lease_s).finalize(settled)

    assert computed == [settled]
    assert run_status(services.engine, settled).state is RunState.COMPLETE


def test_who_lost_its_lease_while_computing_stores_nothing(
    services: Services, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Claim] = []

    def lose_it() -> None:
        lease_runs_out(services)
        others.append(claim(services, settled))

    computes(monkeypatch, lose_it)

    finalizer(services).finalize(settled)

    assert run_status(services.engine, settled).state is RunState.FINALIZING
    assert finalizing.renew(services.engine, others[0], lease_s=60), "the other one has it still"


def test_who_is_told_to_stop_while_computing_gives_the_run_back_at_once(
    services: Services, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    computes(monkeypatch, stop.set)
    stopped = Finalizer(services.engine, services.coordination, lease_s=60, stopping=stop.is_set)

    with pytest.raises(ShuttingDownError):
        stopped.finalize(settled)

    assert claim(services, settled).attempt == 1, "it counts as not attempted"


def test_a_report_that_would_be_too_large_to_store_ends_its_run_without_groups(
    services: Services, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalizing, "MAX_REPORT_BYTES", 5_000)

    finalizer(services).finalize(settled)

    report = stored_report(services.engine, settled)
    assert run_status(services.engine, settled).state is RunState.COMPLETE
    assert report is not None
    assert (report.groups, report.counts.scored) == ((), 4)
    assert "larger than" in report.without_groups


def test_a_report_that_fails_each_time_ends_its_run_without_groups_and_with_its_receipt(
    services: Services, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    expected = build_report(services.engine, settled).receipt
    monkeypatch.setattr("worker.collector.report.measure", fail)

    for _ in range(4):
        assert run_status(services.engine, settled).state is not RunState.COMPLETE
        finalizer(services).finalize(settled)
        lease_runs_out(services)

    report = stored_report(services.engine, settled)
    assert report is not None
    assert (report.groups, report.receipt) == ((), expected)
    assert report.without_groups == "3 attempts to compute them failed"


def test_a_report_that_waits_to_be_computed_is_not_asked_for_at_every_look(services: Services, settled: str) -> None:
    looking = Reconciler(services.engine, services.coordination, services.publisher, services.settings)

    with services.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(3):
            looking.look(connection)

    assert services.coordination.queues.reports_waiting() == 1


def finalizer_of(collector: Any) -> psutil.Process:
    (found,) = [one for one in children(collector) if "worker.collector.finalizer" in " ".join(one.cmdline())]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_finalizer_that_is_stopped_or_killed_is_replaced_and_verdicts_settle_meanwhile(
    services: Services, fleet: Fleet, fault: signal.Signals
) -> None:
    collector = fleet.start("collector", LIBRA_FINALIZE_LEASE_S="2")
    fleet.wait(lambda: fleet.is_ready(collector))
    warm_up = intake.create_run(services.engine, spec())
    intake.seal(services.engine, warm_up)
    fleet.wait(lambda: run_status(services.engine, warm_up).state is RunState.COMPLETE)
    run_id = intake.create_run(services.engine, spec())
    chunks: list[JudgeChunk] = intake.accept(services.engine, run_id, spec(), [items(4)])
    first = finalizer_of(collector)
    os.kill(first.pid, fault)

    for chunk in chunks:
        services.publisher.settle(verdicts_for(chunk))
    fleet.wait(lambda: run_status(services.engine, run_id).counts.settled == 4)
    intake.seal(services.engine, run_id)

    fleet.wait(lambda: run_status(services.engine, run_id).state is RunState.COMPLETE)
    assert finalizer_of(collector).pid != first.pid
