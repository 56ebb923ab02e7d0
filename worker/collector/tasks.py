"""The collector's tasks: settle verdicts and, once per run, compute its metrics.

While the database is away the collector keeps the messages it holds (its prefetch bounds them) and tries again; asked
to stop, it gives them back. Those of a collector that is killed are lost with it: the reconciler finds their chunks.
"""

from __future__ import annotations

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
from infra.ledger import audit, reviews, settlement
from infra.ledger.items import judged_rows
from infra.ledger.retention import scrub_run
from infra.ledger.runs import fingerprint_body, invalid_rows, is_later_stage, run_status
from infra.ledger.stats import cached_count, dead_items, dead_reasons, run_cost, throughput
from infra.log import get_logger
from infra.metrics import measure
from infra.retry import ignore_redis_errors, retry
from schemas.items import Retention
from schemas.messages import VerdictChunk, decode_chunk
from schemas.runs import RunReport, RunState
from worker.collector.counts import Counts

_LONGEST_PAUSE_S: Final = 1.0
"""Well below any lease, or what waits here would be taken for lost once the ledger is back."""
_JOINT_CHUNKS: Final = 16
"""Verdict chunks in one transaction, at most."""
_TRANSIENT_SQLSTATES: Final = ("08", "40", "53", "55", "57")
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
        """Settle what waits together in one transaction; those who wait are notified only after its commit."""
        outcomes = self._when_ledger_answers(
            lambda: settlement.settle_all(self._engine, chunks, retention=self._retention)
        )
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
            self._when_ledger_answers(lambda: self._finalize(run_id))

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

    def _when_ledger_answers(self, action: Callable[[], ResultT]) -> ResultT:
        return retry(
            action,
            errors=(DBAPIError,),
            is_transient=self._may_wait,
            longest_pause_s=_LONGEST_PAUSE_S,
            event="ledger_away",
        )

    def _may_wait(self, error: Exception) -> bool:
        if not is_transient(error):
            return False
        if self._stopping():
            raise ShuttingDownError(str(getattr(error, "orig", error))) from error
        return True


def is_transient(error: Exception) -> bool:
    """True if waiting can help: the server is away, overloaded or chose us as a deadlock's victim."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    invalidated = getattr(error, "connection_invalidated", False)
    return invalidated or state is None or str(state).startswith(_TRANSIENT_SQLSTATES)


def build_report(engine: sa.Engine, run_id: str) -> RunReport:
    """Metrics, counts, speed and provenance of a run whose items have all settled."""
    status = run_status(engine, run_id)
    cost = run_cost(engine, run_id)
    return RunReport(
        run_id=status.id,
        name=status.name,
        state=RunState.CANCELLED if status.cancelled else RunState.COMPLETE,
        spec=status.spec.model_copy(update={"examples": ()}),  # texts; their source and digest stay
        counts=status.counts,
        fingerprint=fingerprint_body(engine, status.fingerprint),
        groups=measure(judged_rows(engine, run_id), in_score_order=True),
        throughput=throughput(engine, status),
        dead_reasons=dead_reasons(engine, run_id),
        dead_items=dead_items(engine, run_id),
        cached=cached_count(engine, run_id),
        cost=cost if cost.measured else None,
        invalid_rows=invalid_rows(engine, run_id),
        invalid_count=status.invalid_count,
        receipt=audit.receipt(engine, run_id),
        created_at=status.created_at.isoformat(),
    )
