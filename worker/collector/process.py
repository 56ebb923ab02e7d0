"""Composition root of the collector: a Celery worker for verdicts, and the reconciler in a thread."""

from __future__ import annotations

import os
import socket
import threading

from celery import Celery
from celery.exceptions import Reject
from celery.worker import state as celery_state

from infra.board import Board
from infra.broker import FINALIZE, FINALIZING, SETTLE, VERDICTS, Publisher, make_app
from infra.log import get_logger
from infra.services import Services
from schemas.messages import MessageError
from worker.app import run_celery
from worker.collector.reconcile import Reconciler
from worker.collector.tasks import Collector, ShuttingDownError

log = get_logger(__name__)

_ANNOUNCE_EVERY_S = 5.0


def run_collector(services: Services) -> None:
    """Settle verdicts until SIGTERM.

    Raises:
        infra.errors.ServerError: no Redis, no Postgres, or a ledger of another shape.
    """
    settings, engine, board = services.settings, services.engine, services.board
    app = make_app(services.redis_url, settings)
    publisher = Publisher(app)
    collector = Collector(
        engine,
        board,
        publisher,
        finalize_lease_s=settings.finalize_lease_s,
        retention=settings.retention,
        stopping=lambda: bool(celery_state.should_stop or celery_state.should_terminate),
    )
    _register(app, collector, board)
    stop = threading.Event()
    worker_id = f"collector-{socket.gethostname()}-{os.getpid()}"
    threads = [
        threading.Thread(target=Reconciler(engine, board, publisher, settings).run, args=(stop,), daemon=True),
        threading.Thread(target=_announce, args=(board, worker_id, stop), daemon=True),
    ]
    for thread in threads:
        thread.start()
    log.info("collector_ready", worker=worker_id)
    run_celery(app, board, VERDICTS, FINALIZING, threads=settings.collector_threads, hostname=worker_id)
    stop.set()
    board.withdraw_worker(worker_id)


def _register(app: Celery, collector: Collector, board: Board) -> None:
    @app.task(name=SETTLE)  # type: ignore[untyped-decorator]
    def settle(body: str) -> None:
        try:
            collector.settle(body)
        except MessageError as error:
            log.error("verdicts_parked", reason=str(error))
            board.park(VERDICTS, str(error), body)
        except ShuttingDownError as error:
            raise Reject(str(error), requeue=True) from error

    @app.task(name=FINALIZE)  # type: ignore[untyped-decorator]
    def finalize(run_id: str) -> None:
        try:
            collector.finalize(run_id)
        except ShuttingDownError as error:
            raise Reject(str(error), requeue=True) from error


def _announce(board: Board, worker_id: str, stop: threading.Event) -> None:
    facts = {"id": worker_id, "kind": "collector", "state": "ready", "pid": os.getpid()}
    while True:
        try:
            board.announce_worker(worker_id, dict(facts))
        except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away for a while
            log.warning("announce_failed", error=str(error))
        if stop.wait(_ANNOUNCE_EVERY_S):
            return
