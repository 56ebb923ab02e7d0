"""A drill's questions to ledger and queues: chunks in flight, when they settled, discarded work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from infra.servers.services import Services
from schemas.messages import Lane


class ChunkEnd(NamedTuple):
    """A chunk as it stands. `settled_at` is its last verdict's time, None while items are pending."""

    size: int
    attempt: int
    wasted: int
    settled_at: float | None


class Totals(NamedTuple):
    """Items of all runs in the ledger, and how many runs have ended or are live and whole."""

    accepted: int
    settled: int
    ended_runs: int


_ENDS = """
    SELECT c.run_id || '/' || c.chunk_no AS id, c.size, c.attempt, c.wasted,
           CASE WHEN c.settled = c.size THEN (
               SELECT extract(epoch FROM max(v.settled_at))::float8 FROM verdicts v
               WHERE v.run_id = c.run_id AND v.iteration = c.iteration
                 AND v.seq BETWEEN c.first_seq AND c.first_seq + c.size - 1) END AS settled_at
    FROM chunks c
"""


class LedgerProbe:
    """Questions to one ledger that holds nothing but the drill's runs."""

    def __init__(self, services: Services, guard: str) -> None:
        self._services = services
        self._guard = guard

    def in_flight(self) -> set[str]:
        """Chunks that are accepted, not queued and not settled."""
        unsettled: set[str] = set(self._column("SELECT run_id || '/' || chunk_no FROM chunks WHERE settled < size"))
        queued = [chunk for lane in Lane for chunk in self._services.coordination.queues.queued(self._guard, lane)]
        return unsettled.difference(queued)

    def unsettled_of(self, chunk_ids: Collection[str]) -> int:
        """The number of these chunks that have pending items."""
        statement = (
            "SELECT count(*) FROM chunks WHERE settled < size AND run_id || '/' || chunk_no = ANY(CAST(:ids AS text[]))"
        )
        return int(self._column(statement, ids=list(chunk_ids))[0])

    def first_settled_after(self, at: float) -> float | None:
        """The time at which the first item settled after `at` (epoch seconds by the ledger's clock), or None."""
        statement = (
            "SELECT extract(epoch FROM min(settled_at))::float8 FROM verdicts WHERE settled_at > to_timestamp(:at)"
        )
        first: float | None = self._column(statement, at=at)[0]
        return first

    def now(self) -> float:
        """The ledger's clock, epoch seconds."""
        return float(self._column("SELECT extract(epoch FROM clock_timestamp())::float8")[0])

    def totals(self) -> Totals:
        """The drill's progress."""
        statement = sa.text(
            "SELECT coalesce(sum(accepted), 0), coalesce(sum(settled), 0), "
            "count(*) FILTER (WHERE state = 'complete' OR (lane = 'live' AND accepted = settled)) FROM runs"
        )
        with self._services.engine.connect() as connection:
            row = connection.execute(statement).one()
        return Totals(int(row[0]), int(row[1]), int(row[2]))

    def dead(self) -> int:
        """Items that settled as dead."""
        return int(self._column("SELECT coalesce(sum(dead), 0) FROM runs")[0])

    def runs(self) -> list[str]:
        """Every run's id."""
        return [str(run) for run in self._column("SELECT id FROM runs ORDER BY created_at")]

    def ends(self) -> dict[str, ChunkEnd]:
        """Every chunk's end."""
        with self._services.engine.connect() as connection:
            rows = connection.execute(sa.text(_ENDS)).all()
        return {row.id: ChunkEnd(row.size, row.attempt, row.wasted, row.settled_at) for row in rows}

    def _column(self, statement: str, **values: object) -> Sequence[Any]:
        with self._services.engine.connect() as connection:
            return connection.scalars(sa.text(statement), values).all()
