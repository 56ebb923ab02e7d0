"""The collector's task: settle verdicts, and ask for the report of a run that has reached its count.

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
from infra.ledger import settlement
from infra.log import get_logger
from infra.retry import ignore_redis_errors, retry
from schemas.items import Retention
from schemas.messages import VerdictChunk, decode_chunk
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
    """Settles verdict chunks. Thread-safe."""

    def __init__(
        self,
        engine: sa.Engine,
        coordination: CoordinationStore,
        publisher: Publisher,
        *,
        retention: Retention = Retention.FULL,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._coordination = coordination
        self._publisher = publisher
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
        outcomes = when_ledger_answers(
            lambda: settlement.settle_all(self._engine, chunks, retention=self._retention), stopping=self._stopping
        )
        pairs = zip(chunks, outcomes, strict=True)
        settled = [(chunk, outcome) for chunk, outcome in pairs if not isinstance(outcome, Exception)]
        with ignore_redis_errors("settled"):
            self._coordination.notices.settled([chunk for chunk, _ in settled])
        self.counts.count(settled)
        return outcomes


def when_ledger_answers(action: Callable[[], ResultT], *, stopping: Callable[[], bool]) -> ResultT:
    """The result of an action on the ledger, which is done again while the ledger is away.

    Raises:
        ShuttingDownError: it is away, and this process was told to stop.
    """

    def may_wait(error: Exception) -> bool:
        if not is_transient(error):
            return False
        if stopping():
            raise ShuttingDownError(str(getattr(error, "orig", error))) from error
        return True

    return retry(
        action,
        errors=(DBAPIError,),
        is_transient=may_wait,
        longest_pause_s=_LONGEST_PAUSE_S,
        event="ledger_away",
    )


def is_transient(error: Exception) -> bool:
    """True if waiting can help: the server is away, overloaded or chose us as a deadlock's victim."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    invalidated = getattr(error, "connection_invalidated", False)
    return invalidated or state is None or str(state).startswith(_TRANSIENT_SQLSTATES)
