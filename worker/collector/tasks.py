"""The collector's task: settle verdicts, and ask for the report of a run that has reached its count.

While the database is away the collector keeps the messages it holds (its prefetch bounds them) and tries again; asked
to stop, it gives them back. Those of a collector that is killed are lost with it: the reconciler finds their chunks.

No error drops a verdict. What meets a locked row, or an error nobody foresaw, goes to the end of the queue and comes
again; what fails on each of several deliveries goes to the dead-letter queue as a verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from infra import tracing
from infra.broker.queues import Publisher
from infra.coordination.store import CoordinationStore
from infra.errors import LibraError
from infra.group_commit import GroupCommit
from infra.ledger import settlement
from infra.ledger.faults import describe, is_passing
from infra.log import get_logger
from infra.retry import ignore_redis_errors, retry
from schemas.items import Retention
from schemas.messages import MessageError, VerdictChunk, decode_chunk
from worker.collector.counts import Counts
from worker.collector.locked_runs import LockedRuns

_LONGEST_PAUSE_S: Final = 1.0
"""Well below any lease, or what waits here would be taken for lost once the ledger is back."""
_JOINT_CHUNKS: Final = 16
"""Verdict chunks in one transaction, at most."""
_BUSY_PAUSE_S: Final = 0.05
_FAILED_PAUSE_S: Final = 1.0
_DELIVERIES: Final = 5
"""Verdicts that failed so often, for no reason that passes, wait for a person."""

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
        self._locked_runs = LockedRuns()

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
                settled = self._settle(chunk)
            except (MessageError, ShuttingDownError):
                raise
            except settlement.FingerprintMismatchError as error:
                log.error("verdicts_refused", reason=str(error), worker=chunk.worker)
            except settlement.BusyError as error:
                log.debug("verdicts_wait", reason=str(error))
                self._deliver_again(chunk, after_s=_BUSY_PAUSE_S)
            except Exception as error:  # noqa: BLE001 - a verdict is dropped by no error, foreseen or not
                self._put_off(chunk, error)
            else:
                self._follow_up(chunk, settled)

    def _settle(self, chunk: VerdictChunk) -> settlement.Settled:
        """Settle a chunk, together with others unless its run is known to be locked; then one of the run tries."""
        if chunk.run_id not in self._locked_runs:
            return self._settle_together(chunk)
        with self._locked_runs.trying(chunk.run_id) as may_try:
            if not may_try:
                raise settlement.RunBusyError(f"run {chunk.run_id} is locked")
            (outcome,) = self._settle_all([chunk])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _follow_up(self, chunk: VerdictChunk, settled: settlement.Settled) -> None:
        if settled.inserted < len(chunk.verdicts):
            log.info("duplicates_suppressed", items=len(chunk.verdicts) - settled.inserted)
        if settled.finished:
            self._publisher.finalize(chunk.run_id)

    def _put_off(self, chunk: VerdictChunk, error: Exception) -> None:
        """Deliver verdicts once more that failed for an unknown reason; in the end they wait for a person."""
        reason, again = describe(error), chunk.model_copy(update={"failures": chunk.failures + 1})
        log.error("verdicts_failed", reason=reason, failures=again.failures)
        if again.failures >= _DELIVERIES and self._coordination.dead_letters.keep_verdicts(chunk, reason):
            log.error("verdicts_parked", reason=reason)
        else:
            self._deliver_again(again, after_s=_FAILED_PAUSE_S)

    def _deliver_again(self, chunk: VerdictChunk, *, after_s: float) -> None:
        time.sleep(after_s)
        self._publisher.settle(chunk)  # to the end of the queue: the others go first

    def _settle_all(self, chunks: list[VerdictChunk]) -> Sequence[settlement.Settled | Exception]:
        """Settle what waits together in one transaction; those who wait are notified only after its commit.

        What the ledger's absence keeps from settling stays in hand, and is tried again when the ledger is back.
        """
        outcome_of: dict[int, settlement.Settled | Exception] = {}

        def settle_rest() -> None:
            rest = [place for place in range(len(chunks)) if place not in outcome_of]
            found = settlement.settle_all(self._engine, [chunks[place] for place in rest], retention=self._retention)
            away = [outcome for outcome in found if isinstance(outcome, Exception) and is_passing(outcome)]
            outcome_of.update((at, outcome) for at, outcome in zip(rest, found, strict=True) if outcome not in away)
            self._tell([(chunks[at], outcome_of[at]) for at in rest if at in outcome_of])
            if away:
                raise away[0]

        when_ledger_answers(settle_rest, stopping=self._stopping)
        return [outcome_of[place] for place in range(len(chunks))]

    def _tell(self, outcomes: Sequence[tuple[VerdictChunk, settlement.Settled | Exception]]) -> None:
        for chunk, outcome in outcomes:
            self._locked_runs.note(chunk.run_id, locked=isinstance(outcome, settlement.RunBusyError))
        settled = [(chunk, outcome) for chunk, outcome in outcomes if not isinstance(outcome, Exception)]
        if settled:
            with ignore_redis_errors("settled"):
                self._coordination.notices.settled([chunk for chunk, _ in settled])
            self.counts.count(settled)


def when_ledger_answers(action: Callable[[], ResultT], *, stopping: Callable[[], bool]) -> ResultT:
    """The result of an action on the ledger, which is done again while the ledger is away.

    Raises:
        ShuttingDownError: it is away, and this process was told to stop.
    """

    def may_wait(error: Exception) -> bool:
        if not is_passing(error):
            return False
        if stopping():
            raise ShuttingDownError(describe(error)) from error
        return True

    return retry(
        action,
        errors=(SQLAlchemyError,),
        is_transient=may_wait,
        longest_pause_s=_LONGEST_PAUSE_S,
        event="ledger_away",
    )
