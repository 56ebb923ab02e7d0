"""The reconciler's half of the ledger: lost chunks are found, and taken up again.

A chunk is lost when its lane had dispatched a later one (watermark) more than a lease ago and no live
consumer holds it. What is later the chunks' ordinals say, not a clock; a lease runs by the database's clock, and
the reconciler takes off again what it should not count.

A chunk that another transaction has locked is passed over until the next look: whoever holds it delays nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import execute
from infra.ledger.items import dialogue_from
from infra.ledger.leases import lease_ended
from infra.ledger.runs import WAITS_FOR_NEXT_STAGE
from schemas.messages import ChunkItem, JudgeChunk, Lane
from schemas.runs import RunSpec

_RECONCILER: Final = "reconciler"

_SET_OVERTAKEN: Final = """
    WITH found AS (
        SELECT c.run_id, c.chunk_no FROM chunks c JOIN runs r ON r.id = c.run_id
        WHERE r.guard = :guard AND r.lane = :lane AND c.settled < c.size AND {which}
        ORDER BY c.run_id, c.chunk_no FOR UPDATE OF c SKIP LOCKED
    )
    UPDATE chunks c SET overtaken_at = {at} FROM found f WHERE c.run_id = f.run_id AND c.chunk_no = f.chunk_no
"""
_START_LEASES: Final = sa.text(
    _SET_OVERTAKEN.format(
        which="""coalesce(c.ordinal, 0) < :watermark
          AND (c.overtaken_at IS NULL OR c.run_id || '/' || c.chunk_no = ANY(CAST(:held AS text[])))""",
        at="clock_timestamp()",
    )
)
_END_LEASES: Final = sa.text(
    _SET_OVERTAKEN.format(which="coalesce(c.ordinal, 0) >= :watermark AND c.overtaken_at IS NOT NULL", at="NULL")
)
_DISCOUNT: Final = sa.text(
    _SET_OVERTAKEN.format(
        which="c.overtaken_at IS NOT NULL",
        at="least(c.overtaken_at + make_interval(secs => :uncounted_s), clock_timestamp())",
    )
)


class LaneKey(NamedTuple):
    """One queue: a guard and a lane."""

    guard: str
    lane: Lane


class OverdueChunk(NamedTuple):
    """A chunk that is lost, with the attempts it has had and the start of the lease that ran out.

    Whoever takes it up names both: a reconciler that was stopped for a while changes nothing that moved on meanwhile.
    """

    run_id: str
    chunk_no: int
    attempt: int
    overtaken_at: datetime | None = None

    @property
    def chunk_id(self) -> str:
        """As `JudgeChunk` names it."""
        return f"{self.run_id}/{self.chunk_no}"


def lead(connection: sa.Connection, holder: str, *, lease_s: float) -> bool:
    """Become the active reconciler, or stay it, for `lease_s` more by the ledger's clock; False where another one is.

    A row with a lease, not a lock of the session: it ends though its holder's host vanished or its process was
    stopped, and it holds through a pooler that shares sessions.
    """
    statement = sa.text(
        f"""
        INSERT INTO leaders AS l (role, holder, lease_until)
        VALUES (:role, :holder, clock_timestamp() + make_interval(secs => :lease_s))
        ON CONFLICT (role) DO UPDATE SET holder = excluded.holder, lease_until = excluded.lease_until
        WHERE l.holder = excluded.holder OR {lease_ended("l.lease_until")}
        RETURNING true
        """  # noqa: S608 - our own
    )
    return bool(connection.scalar(statement, {"role": _RECONCILER, "holder": holder, "lease_s": lease_s}))


def resign(engine: sa.Engine, holder: str) -> None:
    """Give up the lead, if this process has it, so that another need not wait for the end of the lease."""
    statement = sa.text("UPDATE leaders SET lease_until = '-infinity' WHERE role = :role AND holder = :holder")
    execute(engine, statement, {"role": _RECONCILER, "holder": holder})


def lanes_with_pending(connection: sa.Connection) -> list[LaneKey]:
    """The queues that some unsettled chunk was put on."""
    statement = sa.text(
        """
        SELECT DISTINCT r.guard, r.lane FROM chunks c JOIN runs r ON r.id = c.run_id WHERE c.settled < c.size
        """
    )
    return [LaneKey(row.guard, Lane(row.lane)) for row in connection.execute(statement)]


def next_ordinal(connection: sa.Connection) -> int:
    """An ordinal beyond all that were drawn so far."""
    return int(connection.scalar(sa.text("SELECT last_value + 1 FROM chunk_ordinals")) or 0)


def count_on_from(connection: sa.Connection, published: int) -> None:
    """Draw no ordinal again that the broker has seen: a failover that lost commits has set the sequence back."""
    ahead = sa.text("SELECT setval('chunk_ordinals', :at) FROM chunk_ordinals WHERE last_value < :at")
    connection.execute(ahead, {"at": published})


def note_overtaken(connection: sa.Connection, key: LaneKey, *, watermark: int, held: Sequence[str]) -> None:
    """Start the lease of chunks that the watermark has passed, and restart it for those that are held.

    A chunk the watermark has not passed may still be queued: it has no lease.
    """
    values = {"guard": key.guard, "lane": key.lane.value, "watermark": watermark}
    connection.execute(_START_LEASES, {**values, "held": list(held)})
    connection.execute(_END_LEASES, values)


def discount(connection: sa.Connection, key: LaneKey, *, uncounted_s: float) -> None:
    """Take so many seconds off a lane's leases; no lease is left with less than nothing on it."""
    if not uncounted_s:
        return
    values = {"guard": key.guard, "lane": key.lane.value, "uncounted_s": uncounted_s}
    connection.execute(_DISCOUNT, values)


def restart_leases(connection: sa.Connection, chunks: Sequence[OverdueChunk]) -> None:
    """Begin the leases of some chunks anew."""
    statement = sa.text(
        """
        WITH found AS (
            SELECT run_id, chunk_no FROM chunks
            WHERE (run_id, chunk_no) IN (SELECT * FROM unnest(CAST(:run_ids AS text[]), CAST(:chunk_nos AS bigint[])))
            ORDER BY run_id, chunk_no FOR UPDATE SKIP LOCKED
        )
        UPDATE chunks c SET overtaken_at = clock_timestamp()
        FROM found f WHERE c.run_id = f.run_id AND c.chunk_no = f.chunk_no
        """
    )
    of_chunks = {"run_ids": [lost.run_id for lost in chunks], "chunk_nos": [lost.chunk_no for lost in chunks]}
    connection.execute(statement, of_chunks)


def overdue(connection: sa.Connection, key: LaneKey, *, lease_s: float, limit: int = 256) -> list[OverdueChunk]:
    """Chunks of a lane whose lease has run out, without those that somebody is settling at this moment."""
    statement = sa.text(
        """
        SELECT c.run_id, c.chunk_no, c.attempt, c.overtaken_at FROM chunks c JOIN runs r ON r.id = c.run_id
        WHERE r.guard = :guard AND r.lane = :lane AND c.settled < c.size
          AND c.overtaken_at < clock_timestamp() - make_interval(secs => :lease_s)
        ORDER BY c.overtaken_at LIMIT :limit FOR UPDATE OF c SKIP LOCKED
        """
    )
    values = {"guard": key.guard, "lane": key.lane.value, "lease_s": lease_s, "limit": limit}
    return [OverdueChunk(*row) for row in connection.execute(statement, values)]


def take_up(connection: sa.Connection, lost: OverdueChunk) -> JudgeChunk | None:
    """A fresh attempt at a lost chunk, holding only the items still pending; None where it settled or moved on."""
    renew = sa.text(
        """
        WITH lost AS (
            SELECT run_id, chunk_no FROM chunks
            WHERE run_id = :run_id AND chunk_no = :chunk_no AND attempt = :attempt AND settled < size
              AND overtaken_at IS NOT DISTINCT FROM CAST(:overtaken_at AS timestamptz)
            FOR UPDATE SKIP LOCKED
        )
        UPDATE chunks c SET attempt = attempt + 1, enqueued_at = clock_timestamp(), overtaken_at = NULL,
                            ordinal = nextval('chunk_ordinals')
        FROM runs r, lost
        WHERE r.id = c.run_id AND c.run_id = lost.run_id AND c.chunk_no = lost.chunk_no
        RETURNING c.iteration, c.first_seq, c.size, c.attempt, c.nonce, c.ordinal,
                  extract(epoch FROM c.enqueued_at)::float8 AS at, r.spec, r.fingerprint
        """
    )
    pending = sa.text(
        """
        SELECT i.seq, i.question, i.response, i.kind, i.history FROM items i
        LEFT JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq AND v.iteration = :iteration
        WHERE i.run_id = :run_id AND i.seq BETWEEN :first_seq AND :last_seq AND v.seq IS NULL ORDER BY i.seq
        """
    )
    row = connection.execute(renew, lost._asdict()).one_or_none()
    if row is None:
        return None
    span = {"first_seq": row.first_seq, "last_seq": row.first_seq + row.size - 1, "iteration": row.iteration}
    items = connection.execute(pending, {"run_id": lost.run_id, **span}).all()
    if not items:
        return None
    spec = RunSpec.model_validate(row.spec, strict=False)
    wire = tuple(ChunkItem(seq=item.seq, **dialogue_from(item)._asdict()) for item in items)
    return spec.chunk(
        *(lost.run_id, lost.chunk_no, wire),
        iteration=row.iteration,
        enqueued_at=row.at,
        attempt=row.attempt,
        nonce=row.nonce or "",
        ordinal=row.ordinal,
        fingerprint=row.fingerprint,
    )


def unfinished(connection: sa.Connection, *, lease_s: float) -> list[str]:
    """Runs whose items have all settled but whose metrics nobody is computing (a collector died in between)."""
    statement = sa.text(
        f"""
        SELECT id FROM runs WHERE settled = expected
          AND (state = 'sealed' OR (state = 'finalizing' AND {lease_ended()}))
          AND NOT ({WAITS_FOR_NEXT_STAGE})
        """  # noqa: S608 - our own
    )
    return list(connection.scalars(statement, {"lease_s": lease_s}))
