"""The reconciler: re-enqueues what was lost, never what merely waits, and finishes what a dead collector began.

However many collectors run, a leased row of the ledger lets one of them reconcile.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import defaultdict
from contextlib import suppress
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.broker.app import queue_of
from infra.broker.queues import Publisher
from infra.coordination import counters
from infra.coordination.counters import Tally
from infra.coordination.store import CoordinationStore
from infra.ledger import intake, months, recovery, settlement
from infra.ledger.engine import NOW, autocommit
from infra.ledger.faults import describe
from infra.ledger.recovery import LaneKey, OverdueChunk
from infra.log import get_logger
from infra.retry import ignore_redis_errors
from infra.settings import Settings
from schemas.messages import Lane
from schemas.verdicts import Outcome

_JITTER: Final = 0.2
_NOT_LOOKED_S: Final = 1e9
"""For a lane that this process has not looked at yet: no lease has so much on it."""
_PAUSES_COUNTED: Final = 3.0
"""Of the time between two looks at a lane, no more counts than so many pauses."""
_MONTHS_EVERY_S: Final = 3_600.0
_NOTICEABLE_S: Final = 0.5
"""A difference between two clocks that is worth a statement."""

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
        self._holder = secrets.token_hex(8)
        self._months_due = 0.0
        self._looked: dict[LaneKey, tuple[float, float]] = {}  # the last whole look: the ledger's clock, and our own

    def run(self, stop: threading.Event) -> None:
        """Reconcile until stopped."""
        while not stop.wait(self._pause_s()):
            try:
                self.look_in_turn()
            except Exception as error:  # noqa: BLE001 - a loop's edge: broker or ledger may be away for a while
                log.warning("reconciler_waits", error=describe(error))
        with suppress(sa.exc.SQLAlchemyError):  # away: the lease ends by itself
            recovery.resign(self._engine, self._holder)

    def look_in_turn(self) -> Reconciled | None:
        """One pass over all lanes if this process leads or nobody does; None where another one leads."""
        with autocommit(self._engine) as connection:
            if recovery.lead(connection, self._holder, lease_s=self._settings.reconciler_lease_s):
                return self.look(connection)
        return None

    def _pause_s(self) -> float:
        return self._settings.reconcile_every_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter

    def look(self, connection: sa.Connection) -> Reconciled:
        """One pass over all lanes. What fails in one of them costs that lane this look, and no lease any time."""
        requeued = given_up = 0
        tally = Tally()
        lanes = recovery.lanes_with_pending(connection)
        self._looked = {key: at for key, at in self._looked.items() if key in lanes}
        for key in lanes:
            try:
                again, dead = self._look_at(connection, key, tally)
                requeued, given_up = requeued + again, given_up + dead
            except Exception as error:
                if connection.invalidated:
                    raise
                log.warning("lane_waits", guard=key.guard, lane=key.lane.value, error=describe(error))
        if sealed := intake.seal_past_days(self._engine):
            log.info("past_days_sealed", runs=len(sealed))
        self._provide_months()
        # Reports are computed one after the other: what was asked for already waits, and would only wait twice.
        unfinished: list[str] = []
        if not self._coordination.queues.reports_waiting():
            unfinished = recovery.unfinished(connection, lease_s=self._settings.finalize_lease_s)
        for run_id in unfinished:
            self._publisher.finalize(run_id)
        tally.add(counters.FINISHED_AGAIN, by=len(unfinished))
        with ignore_redis_errors("reconciled"):
            self._coordination.counters.add(tally)
        if requeued or given_up:
            log.warning("reconciled", requeued=requeued, given_up=given_up)
        return Reconciled(requeued, given_up, len(unfinished))

    def _provide_months(self) -> None:
        """Make the partitions of the month to come, if it is time to look; without them rows lie in a default one."""
        if time.monotonic() < self._months_due:
            return
        self._months_due = time.monotonic() + _MONTHS_EVERY_S
        try:
            with self._engine.begin() as connection:
                made = months.provide(connection)
        except sa.exc.SQLAlchemyError as error:
            log.warning("months_not_provided", error=describe(error))
            return
        if made:
            log.info("months_provided", tables=made)

    def _look_at(self, connection: sa.Connection, key: LaneKey, tally: Tally) -> tuple[int, int]:
        """Find a lane's lost chunks and deal with them; returns how many are queued again, and how many given up."""
        looked = connection.scalar(NOW), time.monotonic()
        recovery.discount(connection, key, uncounted_s=self._uncounted_s(key, looked))
        beyond = recovery.next_ordinal(connection)  # before the queue is read: what is enqueued later is not overtaken
        lineup = self._coordination.queues.lineup(key.guard, key.lane)
        if lineup.published >= beyond:
            recovery.count_on_from(connection, lineup.published)
        held = self._coordination.leases.held(queue_of(key.guard, key.lane))
        watermark = beyond if lineup.next_ordinal is None else lineup.next_ordinal
        recovery.note_overtaken(connection, key, watermark=watermark, held=[*held, *lineup.late])
        found = self._recover(connection, key, self._missing(connection, key), tally)
        self._looked[key] = looked
        return found

    def _uncounted_s(self, key: LaneKey, looked: tuple[float, float]) -> float:
        """Seconds by the ledger's clock since the last whole look at a lane that count against no chunk.

        Time in which nobody looked does not, nor does a jump of that clock, which may go back as well.
        """
        if key not in self._looked:
            return _NOT_LOOKED_S
        ledger_s, own_s = (now - then for now, then in zip(looked, self._looked[key], strict=True))
        uncounted_s = ledger_s - min(own_s, _PAUSES_COUNTED * self._settings.reconcile_every_s)
        return uncounted_s if abs(uncounted_s) > _NOTICEABLE_S else 0.0

    def _missing(self, connection: sa.Connection, key: LaneKey) -> list[OverdueChunk]:
        """Overdue chunks of a lane, without those whose verdicts wait: their leases begin anew."""
        lease_s = self._settings.live_lease_s if key.lane is Lane.LIVE else self._settings.bulk_lease_s
        while overdue := recovery.overdue(connection, key, lease_s=lease_s):
            judged = self._coordination.queues.judged() | self._coordination.dead_letters.chunks_kept()
            recovery.restart_leases(connection, [chunk for chunk in overdue if chunk.chunk_id in judged])
            if missing := [chunk for chunk in overdue if chunk.chunk_id not in judged]:
                return missing
        return []

    def _recover(
        self, connection: sa.Connection, key: LaneKey, lost: list[OverdueChunk], tally: Tally
    ) -> tuple[int, int]:
        requeued = 0
        hopeless: dict[str, list[OverdueChunk]] = defaultdict(list)
        for chunk in lost:
            if chunk.attempt >= self._settings.max_attempts:
                hopeless[chunk.run_id].append(chunk)
                continue
            again = recovery.take_up(connection, chunk)
            if again is not None:
                self._coordination.notices.forget(again)
                self._publisher.judge(again)
                requeued += 1
        for run_id, chunks in hopeless.items():
            chunk_nos, since = [chunk.chunk_no for chunk in chunks], [chunk.overtaken_at for chunk in chunks]
            reason = f"lost {self._settings.max_attempts} times between queue and verdict"
            retention = self._settings.retention
            settled = settlement.settle_dead(
                self._engine, run_id, chunk_nos, reason, lost_since=since, retention=retention
            )
            log.error("chunks_given_up", run=run_id, chunks=chunk_nos, items=settled.inserted)
            self._coordination.notices.ended(run_id)
            if settled.finished:
                self._publisher.finalize(run_id)
            tally.add(counters.ITEMS_SETTLED, *key, Outcome.DEAD.value, counters.NO_LABEL, by=settled.inserted)
        given_up = sum(map(len, hopeless.values()))
        tally.add(counters.RECONCILED, *key, counters.REQUEUED, by=requeued)
        tally.add(counters.RECONCILED, *key, counters.GIVEN_UP, by=given_up)
        return requeued, given_up
