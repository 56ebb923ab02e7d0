"""The reconciler: re-enqueues what was lost, never what merely waits, and finishes what a dead collector began.

However many collectors run, a database lock lets one of them reconcile.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.broker.app import queue_of
from infra.broker.queues import Publisher
from infra.coordination import counters
from infra.coordination.counters import Tally
from infra.coordination.store import CoordinationStore
from infra.ledger import recovery, settlement
from infra.ledger.engine import NOW
from infra.ledger.recovery import LaneKey, OverdueChunk
from infra.log import get_logger
from infra.retry import ignore_redis_errors
from infra.settings import Settings
from schemas.messages import Lane
from schemas.verdicts import Outcome

_JITTER: Final = 0.2
_BEHIND_CHUNKS: Final = 256
"""While more verdicts wait for a collector, what looks lost may lie among them: no lease runs out."""

log = get_logger(__name__)


class Reconciled(NamedTuple):
    """Changes that one look made."""

    requeued: int = 0
    given_up: int = 0
    finalized: int = 0


class Reconciler:
    """Looks at every lane with pending chunks, every few seconds."""

    def __init__(
        self, engine: sa.Engine, coordination: CoordinationStore, publisher: Publisher, settings: Settings
    ) -> None:
        self._engine = engine
        self._coordination = coordination
        self._publisher = publisher
        self._settings = settings

    def run(self, stop: threading.Event) -> None:
        """Reconcile until stopped."""
        while not stop.is_set():
            try:
                with recovery.reconciler_lock(self._engine) as connection:
                    if connection is not None:
                        recovery.restart_leases(connection)
                    while connection is not None and not stop.wait(self._pause_s()):
                        self.look(connection)
            except Exception as error:  # noqa: BLE001 - a loop's edge: broker or ledger may be away for a while
                log.warning("reconciler_waits", error=str(error))
            stop.wait(self._pause_s())

    def _pause_s(self) -> float:
        return self._settings.reconcile_every_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter

    def look(self, connection: sa.Connection) -> Reconciled:
        """One pass over all lanes."""
        requeued = given_up = 0
        tally = Tally()
        if self._coordination.queues.verdicts_waiting() > _BEHIND_CHUNKS:
            recovery.restart_leases(connection)
        for key in recovery.lanes_with_pending(connection):
            now = connection.scalar(NOW)  # before the queue is read: what is enqueued later is not overtaken
            oldest = self._coordination.queues.oldest_enqueued_at(key.guard, key.lane)
            held = self._coordination.leases.held(queue_of(key.guard, key.lane))
            recovery.note_overtaken(connection, key, watermark=now if oldest is None else oldest, held=held)
            lease_s = self._settings.live_lease_s if key.lane is Lane.LIVE else self._settings.bulk_lease_s
            lost = recovery.overdue(connection, key, lease_s=lease_s)
            if lost:  # read only now: verdicts that still wait are as good as settled, and few by the rule above
                judged = self._coordination.queues.judged()
                missing = [chunk for chunk in lost if chunk.chunk_id not in judged]
                again, dead = self._recover(connection, key, missing, tally)
                requeued, given_up = requeued + again, given_up + dead
        unfinished = recovery.unfinished(connection)
        for run_id in unfinished:
            self._publisher.finalize(run_id)
        tally.add(counters.FINISHED_AGAIN, by=len(unfinished))
        with ignore_redis_errors("reconciled"):
            self._coordination.counters.add(tally)
        if requeued or given_up:
            log.warning("reconciled", requeued=requeued, given_up=given_up)
        return Reconciled(requeued, given_up, len(unfinished))

    def _recover(
        self, connection: sa.Connection, key: LaneKey, lost: list[OverdueChunk], tally: Tally
    ) -> tuple[int, int]:
        requeued = 0
        hopeless: dict[str, list[int]] = defaultdict(list)
        for chunk in lost:
            if chunk.attempt >= self._settings.max_attempts:
                hopeless[chunk.run_id].append(chunk.chunk_no)
                continue
            again = recovery.take_up(connection, chunk)
            if again is not None:
                self._publisher.judge(again)
                requeued += 1
        for run_id, chunk_nos in hopeless.items():
            reason = f"lost {self._settings.max_attempts} times between queue and verdict"
            retention = self._settings.retention
            settled = settlement.settle_dead(self._engine, run_id, chunk_nos, reason, retention=retention)
            log.error("chunks_given_up", run=run_id, chunks=chunk_nos, items=settled.inserted)
            self._coordination.notices.ended(run_id)
            if settled.finished:
                self._publisher.finalize(run_id)
            tally.add(counters.ITEMS_SETTLED, *key, Outcome.DEAD.value, counters.NO_LABEL, by=settled.inserted)
        given_up = sum(map(len, hopeless.values()))
        tally.add(counters.RECONCILED, *key, counters.REQUEUED, by=requeued)
        tally.add(counters.RECONCILED, *key, counters.GIVEN_UP, by=given_up)
        return requeued, given_up
