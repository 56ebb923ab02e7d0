"""The finalizer: a process beside each collector that computes the reports of its runs, one at a time.

It shares no interpreter, thread or connection with the settling, and runs at a lower priority, so that a report of
millions of items delays no verdict. `python -m worker.collector.finalizer` runs it; the collector starts it, and knows
by its sign of life, a byte a second on standard output, that it is not stuck.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Final, Self, TypeVar

import sqlalchemy as sa
import structlog
from celery.exceptions import Reject
from celery.worker import state as celery_state

from infra import tracing
from infra.broker.app import FINALIZE, FINALIZING, make_app
from infra.coordination.store import CoordinationStore, open_coordination
from infra.errors import LibraError
from infra.ledger import finalizing, reviews
from infra.ledger.engine import open_ledger, require_current
from infra.ledger.finalizing import Claim
from infra.ledger.retention import scrub_run
from infra.ledger.runs import is_later_stage
from infra.log import configure_logging, get_logger
from infra.process import die_with_parent
from infra.retry import ignore_redis_errors
from infra.servers.services import Work
from infra.settings import Settings, load_settings
from schemas.items import Retention
from worker.collector.report import build_report
from worker.collector.tasks import ShuttingDownError, when_ledger_answers
from worker.consumer.app import run_celery

ALIVE_EVERY_S: Final = 1.0
_NICENESS: Final = 10
_CONNECTIONS: Final = 2
"""One computes, one renews the lease."""
_MOST_ATTEMPTS: Final = 3
"""A run whose report kills or fails its process so often ends without groups."""
_RENEWALS_PER_LEASE: Final = 3

ResultT = TypeVar("ResultT")
log = get_logger(__name__)


class LeaseLostError(LibraError):
    """The run is somebody else's by now."""


class Finalizer:
    """Ends runs."""

    def __init__(
        self,
        engine: sa.Engine,
        coordination: CoordinationStore,
        *,
        lease_s: float,
        retention: Retention = Retention.FULL,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._coordination = coordination
        self._lease_s = lease_s
        self._retention = retention
        self._stopping = stopping

    def finalize(self, run_id: str) -> None:
        """Compute and store a run's report, unless somebody else does or did.

        Raises:
            ShuttingDownError: not done, give it back.
        """
        with structlog.contextvars.bound_contextvars(run=run_id):
            claim = self._patiently(lambda: finalizing.claim(self._engine, run_id, lease_s=self._lease_s))
            if claim is None:
                return
            with _Lease(self._engine, claim, self._lease_s) as lease:
                try:
                    ended = self._patiently(lambda: self._end(claim, lease))
                except LeaseLostError:
                    ended = False
                except ShuttingDownError:
                    finalizing.release(self._engine, claim)
                    raise
                except Exception as error:  # noqa: BLE001 - a loop's edge: the next attempt comes when the lease ends
                    log.error("report_failed", error=type(error).__name__, attempt=claim.attempt)
                    return
            if not ended:
                log.warning("report_superseded")
                return
        with ignore_redis_errors("ended"):
            self._coordination.notices.ended(run_id)
        log.info("run_complete")

    def _end(self, claim: Claim, lease: _Lease) -> bool:
        def check() -> None:
            lease.check()
            if self._stopping():
                raise ShuttingDownError("asked to stop while a report was computed")

        scrub_run(self._engine, claim.run_id, self._retention)
        hopeless = claim.attempt > _MOST_ATTEMPTS
        why = f"{_MOST_ATTEMPTS} attempts to compute them failed" if hopeless else ""
        report = build_report(self._engine, claim.run_id, check=check, without_groups=why)
        if report.spec.parent and not is_later_stage(claim.run_id, report.spec):
            reviews.note_disagreements(self._engine, claim.run_id, report.spec.parent)
        return finalizing.complete(self._engine, claim, report)

    def _patiently(self, action: Callable[[], ResultT]) -> ResultT:
        return when_ledger_answers(action, stopping=self._stopping)


class _Lease:
    """Renews a claim from a thread until the context ends; `check` tells whether it is still ours."""

    def __init__(self, engine: sa.Engine, claim: Claim, lease_s: float) -> None:
        self._engine = engine
        self._claim = claim
        self._lease_s = lease_s
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="report-lease")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def check(self) -> None:
        """Raise LeaseLostError if the run is no longer this claim's."""
        if self._lost.is_set():
            raise LeaseLostError(f"run {self._claim.run_id} was claimed by another process")

    def _keep(self) -> None:
        while not self._ended.wait(self._lease_s / _RENEWALS_PER_LEASE):
            try:
                if not finalizing.renew(self._engine, self._claim, lease_s=self._lease_s):
                    self._lost.set()
                    return
            except sa.exc.SQLAlchemyError as error:
                log.warning("lease_not_renewed", error=type(error).__name__)


def run_finalizer(settings: Settings) -> None:
    """Compute reports until SIGTERM; one that is not done is given back.

    Raises:
        infra.errors.ServerError: no Redis, no Postgres, or a ledger of another shape.
    """
    redis_url = settings.require_redis_url()
    engine = open_ledger(
        settings.require_database_url(),
        pool_size=_CONNECTIONS,
        wait_s=settings.wait_for_servers_s,
        limits=Work.COMMAND.limits(settings),
    )
    require_current(engine)
    coordination = open_coordination(redis_url, settings)
    app = make_app(redis_url, settings, records_unacked=False)
    finalizer = Finalizer(
        engine,
        coordination,
        lease_s=settings.finalize_lease_s,
        retention=settings.retention,
        stopping=lambda: bool(celery_state.should_stop or celery_state.should_terminate),
    )

    @app.task(name=FINALIZE)  # type: ignore[untyped-decorator]
    def finalize(run_id: str) -> None:
        try:
            finalizer.finalize(run_id)
        except ShuttingDownError as error:
            raise Reject(str(error), requeue=True) from error

    run_celery(app, coordination.dead_letters, FINALIZING, threads=1, hostname=f"finalizer-{os.getpid()}")


def _show_life() -> None:
    """Write a byte a second to standard output, which nothing else uses."""
    pause = threading.Event()
    while True:
        os.write(sys.stdout.fileno(), b".")
        pause.wait(ALIVE_EVERY_S)


def main() -> None:
    """Run the finalizer of the collector that started this process."""
    settings = load_settings()
    die_with_parent(parent_pid=settings.parent_pid)
    os.nice(_NICENESS)
    configure_logging(settings.log_level, settings.log_format)
    tracing.start(settings.otlp_endpoint, "libra-finalizer")
    threading.Thread(target=_show_life, daemon=True, name="life").start()
    run_finalizer(settings)


if __name__ == "__main__":
    main()
