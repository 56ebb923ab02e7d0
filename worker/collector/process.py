"""Composition root of the collector: a Celery worker for verdicts; reconciler, counters, escalation as threads."""

from __future__ import annotations

import threading

from celery import Celery, Task
from celery.exceptions import Reject
from celery.worker import state as celery_state

from infra import tracing
from infra.broker.app import FINALIZE, FINALIZING, SETTLE, TRACEPARENT, VERDICTS, make_app
from infra.coordination.presence import announced
from infra.log import get_logger
from infra.servers.services import Services
from schemas.messages import MessageError
from worker.collector.escalation import Escalation
from worker.collector.reconcile import Reconciler
from worker.collector.tasks import Collector, ShuttingDownError
from worker.consumer.app import run_celery

log = get_logger(__name__)


def run_collector(services: Services) -> None:
    """Settle verdicts until SIGTERM.

    Raises:
        infra.errors.ServerError: no Redis, no Postgres, or a ledger of another shape.
    """
    settings, engine, coordination = services.settings, services.engine, services.coordination
    app = make_app(services.redis_url, settings)
    without_record(app)
    publisher = services.publisher
    collector = Collector(
        engine,
        coordination,
        publisher,
        finalize_lease_s=settings.finalize_lease_s,
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

    @app.task(name=FINALIZE)  # type: ignore[untyped-decorator]
    def finalize(run_id: str) -> None:
        try:
            collector.finalize(run_id)
        except ShuttingDownError as error:
            raise Reject(str(error), requeue=True) from error

    stop = threading.Event()
    with announced(coordination.presence, "collector") as worker_id:
        reconciler = Reconciler(engine, coordination, publisher, settings)
        threading.Thread(target=reconciler.run, args=(stop,), daemon=True).start()
        threading.Thread(target=collector.counts.run, args=(stop,), daemon=True).start()
        threading.Thread(target=Escalation(services, publisher).run, args=(stop,), daemon=True).start()
        log.info("collector_ready", worker=worker_id)
        threads = settings.collector_threads
        run_celery(app, coordination.dead_letters, VERDICTS, FINALIZING, threads=threads, hostname=worker_id)
        stop.set()
        collector.counts.flush()


def without_record(app: Celery) -> None:
    """Keep no record of unacknowledged messages on Redis, which costs each of them two round trips.

    Where a collector is killed, the reconciler finds its chunks after a lease, long before Celery would redeliver them
    (docs/decisions/0031).
    """
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "ack_emulation": False}
