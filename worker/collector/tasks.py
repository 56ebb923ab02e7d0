"""What the collector does with a message: settle verdicts, then, once per run, compute its metrics.

A message is acknowledged after its transaction has committed. While the database is away the collector
keeps what it holds (its prefetch bounds it) and tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from infra import tracing
from infra.broker.queues import Publisher
from infra.coordination.store import CoordinationStore
from infra.errors import LibraError
from infra.group_commit import GroupCommit
from infra.ledger import reviews, settlement
from infra.ledger.retention import scrub_run
from infra.ledger.runs import is_later_stage
from infra.log import get_logger
from infra.retry import ignore_redis_errors
from schemas.messages import VerdictChunk, decode_chunk
from schemas.retention import Retention
from worker.collector.counts import Counts
from worker.collector.report import build_report

_RETRY_MAX_S: Final = 1.0
"""Well below any lease, or what waits here would be taken for lost once the ledger is back."""
_JOINT_CHUNKS: Final = 16
"""Verdict chunks in one transaction, at most."""
_PASSING_SQLSTATES: Final = ("08", "40", "53", "55", "57")
"""Postgres error classes that pass by themselves: connection, rollback, resources, locks, shutdown."""

ResultT = TypeVar("ResultT")
log = get_logger(__name__)


class ShuttingDownError(LibraError):
    """The database is away and this process was told to stop: give the message back."""


class Collector:
    """Settles verdict chunks and completes runs. Thread-safe."""

    def __init__(
        self,
        engine: sa.Engine,
        coordination: CoordinationStore,
        publisher: Publisher,
        *,
        finalize_lease_s: float,
        retention: Retention = Retention.FULL,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._coordination = coordination
        self._publisher = publisher
        self._finalize_lease_s = finalize_lease_s
        self._retention = retention
        self._stopping = stopping
        self.counts = Counts(coordination)
        self._settle_together = GroupCommit(self._settle_all, at_most=_JOINT_CHUNKS)

    def settle(self, body: str) -> None:
        """Settle one verdict chunk.

        Raises:
            schemas.messages.MessageError: no chunk that this version can read, or not in the ledger.
            ShuttingDownError: not settled, give it back.
        """
        chunk = decode_chunk(VerdictChunk, body)
        guard = chunk.fingerprint.guard if chunk.fingerprint else None
        with (
            structlog.contextvars.bound_contextvars(run=chunk.run_id, chunk=chunk.chunk_no),
            tracing.span("libra.settle", guard=guard, run_id=chunk.run_id, items=len(chunk.verdicts)),
        ):
            try:
                settled = self._settle_together(chunk)
            except settlement.FingerprintMismatchError as error:
                log.error("verdicts_refused", reason=str(error), worker=chunk.worker)
                return
            if settled.inserted < len(chunk.verdicts):
                log.info("duplicates_suppressed", items=len(chunk.verdicts) - settled.inserted)
            if settled.finished:
                self._publisher.finalize(chunk.run_id)

    def _settle_all(self, chunks: list[VerdictChunk]) -> Sequence[settlement.Settled | Exception]:
        """One transaction for what waits together, then word to those who wait for it."""
        outcomes = self._patiently(lambda: settlement.settle_all(self._engine, chunks, retention=self._retention))
        pairs = zip(chunks, outcomes, strict=True)
        settled = [(chunk, outcome) for chunk, outcome in pairs if not isinstance(outcome, Exception)]
        with ignore_redis_errors("settled"):
            self._coordination.notices.settled([chunk for chunk, _ in settled])
        self.counts.count(settled)
        return outcomes

    def finalize(self, run_id: str) -> None:
        """Compute and store a run's metrics, unless somebody else does or did.

        Raises:
            ShuttingDownError: not done, give it back.
        """
        with structlog.contextvars.bound_contextvars(run=run_id):
            self._patiently(lambda: self._finalize(run_id))

    def _finalize(self, run_id: str) -> None:
        if not settlement.begin_finalizing(self._engine, run_id, lease_s=self._finalize_lease_s):
            return
        scrub_run(self._engine, run_id, self._retention)
        report = build_report(self._engine, run_id)
        if report.spec.parent and not is_later_stage(run_id, report.spec):
            reviews.note_disagreements(self._engine, run_id, report.spec.parent)
        settlement.complete(self._engine, run_id, report)
        with ignore_redis_errors("ended"):
            self._coordination.notices.ended(run_id)
        log.info("run_complete")

    def _patiently(self, action: Callable[[], ResultT]) -> ResultT:
        pause_s = 0.1
        while True:
            try:
                return action()
            except DBAPIError as error:
                if not is_transient(error):
                    raise
                if self._stopping():
                    raise ShuttingDownError(str(error.orig)) from error
                log.warning("ledger_away", error=str(error.orig).strip(), retry_s=pause_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)


def is_transient(error: DBAPIError) -> bool:
    """Whether waiting can help: the server is away, overloaded or chose us as a deadlock's victim."""
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or str(state).startswith(_PASSING_SQLSTATES)
