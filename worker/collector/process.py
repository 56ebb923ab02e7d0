"""Composition root of the collector: a Celery worker for verdicts; reconciler, counters, escalation as threads.

Reports are computed by a process of their own, the finalizer.
"""

from __future__ import annotations

import threading

from celery import Task
from celery.exceptions import Reject
from celery.worker import state as celery_state

from infra import tracing
from infra.broker.app import SETTLE, TRACEPARENT, VERDICTS, make_app
from infra.coordination.presence import announced
from infra.log import get_logger
from infra.servers.services import Services, Work
from schemas.messages import MessageError
from worker.collector.escalation import Escalation
from worker.collector.finalizer_keeper import FinalizerKeeper
from worker.collector.reconcile import Reconciler
from worker.collector.tasks import Collector, ShuttingDownError
from worker.consumer.app import run_celery

log = get_logger(__name__)


def run_collector(services: Services) -> None:
    """Settle verdicts until SIGTERM.

    Raises:
        infra.errors.ServerError: no Redis, no Postgres, or a ledger of another shape.
    """
    services = services.working(Work.SETTLE)
    settings, engine, coordination = services.settings, services.engine, services.coordination
    app = make_app(services.redis_url, settings, records_unacked=False)
    publisher = services.publisher
    collector = Collector(
        engine,
        coordination,
        publisher,
        retention=settings.retention,
        stopping=lambda: bool(celery_state.should_stop or celery_state.should_terminate),
    )

    @app.task(name=SETTLE, bind=True)  # type: ignore[untyped-decorator]
    def settle(task: Task, body: str) -> None:
        try:
            with tracing.following(task.request.get(TRACEPARENT)):
                collector.settle(body)
        except MessageError as error:
            log.error("verdicts_parked", reason=str(error))
            coordination.dead_letters.put(VERDICTS, str(error), body)
        except ShuttingDownError as error:
            raise Reject(str(error), requeue=True) from error

    finalizer = FinalizerKeeper(services.environment(), silent_s=settings.finalize_lease_s, grace_s=settings.drain_s)
    stop = threading.Event()
    keeper = threading.Thread(target=finalizer.run, args=(stop,), daemon=True)
    with announced(coordination.presence, "collector") as worker_id:
        reconciler = Reconciler(engine, coordination, publisher, settings)
        threading.Thread(target=reconciler.run, args=(stop,), daemon=True).start()
        threading.Thread(target=collector.counts.run, args=(stop,), daemon=True).start()
        threading.Thread(target=Escalation(services, publisher).run, args=(stop,), daemon=True).start()
        keeper.start()
        log.info("collector_ready", worker=worker_id)
        threads = settings.collector_threads
        try:
            run_celery(app, coordination.dead_letters, VERDICTS, threads=threads, hostname=worker_id)
        finally:
            stop.set()
            keeper.join()
        collector.counts.flush()
