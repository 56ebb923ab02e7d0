"""Takes batches up and submits them as bulk runs, in threads of its own. A batch whose gateway died is gone on with."""

from __future__ import annotations

import threading
from typing import Final

import redis
import sqlalchemy as sa

from infra.errors import LibraError
from infra.ledger import batches, intake, reading, settlement
from infra.ledger.batches import Batch, LineError
from infra.log import get_logger
from producer.gateway.api.batch_lines import BatchOrder, read_order
from producer.gateway.state import Gateway
from producer.intake.submit import seal, submit
from schemas.messages import Lane
from schemas.retention import Retention
from schemas.runs import RunSpec, RunState

_LEASE_S: Final = 60.0
_LOOK_EVERY_S: Final = 1.0
_THREADS: Final = 2
"""So many batches are submitted at a time: while one waits for room on its queue, another tenant's goes on."""

log = get_logger(__name__)


class _StoppedError(LibraError):
    """The gateway ends; the batch stays claimed until its lease is over, then another gateway goes on with it."""


class _CancelledError(LibraError):
    """Somebody cancelled the batch."""


class BatchWorker:
    """Looks for batches until stopped."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="batches", daemon=True) for _ in range(_THREADS)]

    def start(self) -> None:
        """Begin to look."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit no more; returns at once."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = batches.claim_batch(self._services.engine, lease_s=_LEASE_S)
                if found is not None:
                    self._take_up(found)
                    continue
            except (sa.exc.SQLAlchemyError, redis.RedisError, LibraError) as error:
                log.warning("batch_waits", error=type(error).__name__)
            self._stop.wait(_LOOK_EVERY_S)

    def _take_up(self, batch_id: str) -> None:
        engine = self._services.engine
        batch = batches.find_batch(engine, batch_id)
        content = batches.file_content(engine, batch.input_file_id) if batch else None
        if batch is None:
            return
        if content is None:
            batches.fail_batch(engine, batch_id, [LineError(1, "file_gone", "the input file was deleted")])
            return
        order = read_order(content, batch.endpoint, batch.tenant, self._gateway)
        if order.errors:
            batches.fail_batch(engine, batch_id, order.errors)
            return
        try:
            self._submit(batch, order)
        except _CancelledError:
            self._cancel(batch_id)
        except _StoppedError:
            return
        batches.end_submission(engine, batch_id)
        if self._services.settings.retention is not Retention.FULL:
            batches.delete_file(engine, batch.input_file_id)

    def _submit(self, batch: Batch, order: BatchOrder) -> None:
        if order.guard is None:
            raise _CancelledError("a batch without lines")
        spec = RunSpec(
            guard=order.guard.name,
            mode=order.guard.mode,
            lane=Lane.BULK,
            source=f"batch:{batch.id}",
            tenant=batch.tenant,
        )
        engine = self._services.engine
        run_id = batches.begin_run(engine, batch.id, intake.new_run_id())
        status = reading.find_run(engine, run_id)
        if status is None:
            intake.create_run(engine, spec, run_id=run_id, name=batch.id)
        elif status.state is not RunState.OPEN:
            return

        def check() -> None:
            if self._stop.is_set():
                raise _StoppedError("the gateway ends")
            if not batches.renew_batch(engine, batch.id, lease_s=_LEASE_S):
                raise _CancelledError("the batch is cancelled")

        check()
        submissions = order.submissions
        submit(self._services, run_id, spec, order.items, check=check, submission_of=lambda item: submissions[item.id])
        seal(self._services, run_id)

    def _cancel(self, batch_id: str) -> None:
        batch = batches.find_batch(self._services.engine, batch_id)
        if batch is not None and batch.run_id is not None:
            cancel_run(self._gateway, batch.run_id)


def cancel_run(gateway: Gateway, run_id: str) -> None:
    """Settle what is pending in a run as dead, with the reason "cancelled"; nothing happens to a run that has ended."""
    services = gateway.services
    status = reading.find_run(services.engine, run_id)
    if status is None or status.state not in (RunState.OPEN, RunState.SEALED):
        return
    settled = settlement.cancel(services.engine, run_id)
    services.coordination.notices.cancelled(run_id)
    if settled.finished:
        services.publisher.finalize(run_id)
