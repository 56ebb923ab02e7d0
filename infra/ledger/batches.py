"""Uploaded files and the batches over them: bulk runs ordered by file.

A batch is taken up under a lease, so that one whose gateway died is taken up by another.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import Row, execute, fetch_all, fetch_one, fetch_value, named
from infra.ledger.intake import IdempotencyKey, make_once
from infra.ledger.leases import lease_ended
from infra.ledger.runs import counts_of
from infra.ledger.tables import batches, files
from schemas.runs import RunCounts, RunState

_FILE: Final = (
    *(files.c.id, files.c.tenant, files.c.filename, files.c.purpose),
    *(sa.func.length(files.c.content), files.c.created_at),
)

_BATCH: Final = """
    b.id, b.tenant, b.input_file_id, b.endpoint, b.metadata, b.run_id, b.errors, b.cancelling_at, b.failed_at,
    b.submitted_at, b.created_at, r.state, r.accepted, r.settled, r.scored, r.unparseable, r.dead,
    r.accepted - r.settled AS pending, r.created_at AS run_at, r.settled_at, r.completed_at
"""
_BATCHES: Final = f"SELECT {_BATCH} FROM batches b LEFT JOIN runs r ON r.id = b.run_id"  # noqa: S608

_CLAIM: Final = sa.text(
    f"""
    UPDATE batches SET lease_until = now() + make_interval(secs => :lease_s)
    WHERE id = (
        SELECT id FROM batches b
        WHERE submitted_at IS NULL AND failed_at IS NULL AND (lease_until IS NULL OR {lease_ended()})
        ORDER BY EXISTS (SELECT 1 FROM batches o WHERE o.tenant = b.tenant AND o.submitted_at IS NULL
                         AND o.failed_at IS NULL AND o.lease_until >= now()), created_at
        LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id
    """  # noqa: S608 - our own
)


class StoredFile(NamedTuple):
    """An uploaded file without its content."""

    id: str
    tenant: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: datetime


class LineError(NamedTuple):
    """An error in a line of a batch's file; lines count from 1."""

    line: int
    code: str
    message: str
    param: str | None = None


class Batch(NamedTuple):
    """A batch with its run's progress, which is None until there is a run."""

    id: str
    tenant: str
    input_file_id: str
    endpoint: str
    metadata: dict[str, str] | None
    run_id: str | None
    errors: tuple[LineError, ...]
    cancelling_at: datetime | None
    failed_at: datetime | None
    submitted_at: datetime | None
    created_at: datetime
    state: RunState | None
    counts: RunCounts | None
    run_at: datetime | None
    settled_at: datetime | None
    completed_at: datetime | None

    @property
    def purged(self) -> bool:
        """True if its run was deleted, and with it the results."""
        return self.submitted_at is not None and self.run_id is not None and self.state is None


def store_file(engine: sa.Engine, *, tenant: str, filename: str, purpose: str, content: bytes) -> StoredFile:
    """Keep a file."""
    made = sa.insert(files).values(
        id="file-" + secrets.token_hex(10), tenant=tenant, filename=filename, purpose=purpose, content=content
    )
    (row,) = fetch_all(engine, made.returning(*_FILE))
    return StoredFile(*row)


def find_file(engine: sa.Engine, file_id: str) -> StoredFile | None:
    """A file, or None where there is none."""
    row = fetch_one(engine, sa.select(*_FILE).where(files.c.id == file_id))
    return StoredFile(*row) if row else None


def list_files(
    engine: sa.Engine, tenant: str, *, after: str | None, limit: int, newest_first: bool
) -> list[StoredFile]:
    """A tenant's files by age, those behind the file `after`."""
    age = (files.c.created_at, files.c.id)
    query = sa.select(*_FILE).where(files.c.tenant == tenant)
    if after is not None:
        place = sa.select(*age).where(files.c.id == after, files.c.tenant == tenant).subquery()
        at = sa.tuple_(*place.c)
        query = query.join(place, sa.true()).where(sa.tuple_(*age) < at if newest_first else sa.tuple_(*age) > at)
    query = query.order_by(*(column.desc() if newest_first else column.asc() for column in age)).limit(limit)
    return [StoredFile(*row) for row in fetch_all(engine, query)]


def file_content(engine: sa.Engine, file_id: str) -> bytes | None:
    """A file's content, or None where it is gone."""
    content = fetch_value(engine, sa.select(files.c.content).where(files.c.id == file_id))
    return None if content is None else bytes(content)


def delete_file(engine: sa.Engine, file_id: str) -> None:
    """Forget a file."""
    execute(engine, sa.delete(files).where(files.c.id == file_id))


def create_batch(
    engine: sa.Engine,
    *,
    tenant: str,
    input_file_id: str,
    endpoint: str,
    metadata: dict[str, str] | None,
    once: IdempotencyKey | None = None,
) -> str:
    """Order a batch and return its id; with `once`, not a second time.

    Raises:
        AlreadyMadeError, KeyReusedError, KeyInFlightError: see `make_once`.
    """
    batch_id = "batch_" + secrets.token_hex(10)
    values = {"id": batch_id, "tenant": tenant, "input_file_id": input_file_id, "endpoint": endpoint}
    with engine.begin() as connection:
        if once is not None:
            make_once(connection, once, {"batch": batch_id})
        connection.execute(sa.insert(batches).values(**values, metadata=sa.null() if metadata is None else metadata))
    return batch_id


def find_batch(engine: sa.Engine, batch_id: str) -> Batch | None:
    """A batch, or None where there is none."""
    row = fetch_one(engine, sa.text(f"{_BATCHES} WHERE b.id = :id"), {"id": batch_id})
    return _batch(row) if row else None


def list_batches(engine: sa.Engine, tenant: str, *, after: str | None, limit: int) -> list[Batch]:
    """A tenant's batches, newest first, those behind `after` where it is given."""
    statement = sa.text(
        f"{_BATCHES} WHERE b.tenant = :tenant AND (CAST(:after AS text) IS NULL OR (b.created_at, b.id) < "  # noqa: S608
        "(SELECT created_at, id FROM batches WHERE id = :after)) ORDER BY b.created_at DESC, b.id DESC LIMIT :limit"
    )
    return [_batch(row) for row in fetch_all(engine, statement, {"tenant": tenant, "after": after, "limit": limit})]


def claim_batch(engine: sa.Engine, *, lease_s: float) -> str | None:
    """The id of a batch to take up, tenants first of which none is in hand; None where nothing waits."""
    claimed: str | None = fetch_value(engine, _CLAIM, {"lease_s": lease_s})
    return claimed


def renew_batch(engine: sa.Engine, batch_id: str, *, lease_s: float) -> bool:
    """Keep a batch in hand; False where it is to be cancelled."""
    renewed = _update(batch_id, lease_until=sa.func.now() + timedelta(seconds=lease_s))
    return bool(fetch_value(engine, renewed.returning(batches.c.cancelling_at.is_(None))))


def begin_run(engine: sa.Engine, batch_id: str, run_id: str) -> str:
    """Note the batch's run before it is opened; the id that counts, which is an earlier one where there was one."""
    noted = _update(batch_id, run_id=sa.func.coalesce(batches.c.run_id, run_id))
    return str(fetch_value(engine, noted.returning(batches.c.run_id)))


def end_submission(engine: sa.Engine, batch_id: str, *, cancelled: bool = False) -> bool:
    """Everything is in the run, or the run is `cancelled`; False where it is to be cancelled first."""
    ended = _update(batch_id, submitted_at=sa.func.coalesce(batches.c.submitted_at, sa.func.now()))
    return execute(engine, ended if cancelled else ended.where(batches.c.cancelling_at.is_(None))) == 1


def ask_to_cancel(engine: sa.Engine, batch_id: str) -> bool:
    """Have the gateway that submits the batch stop; False where none does any more, so that the caller must."""
    asked = _update(batch_id, cancelling_at=sa.func.coalesce(batches.c.cancelling_at, sa.func.now()))
    return bool(fetch_value(engine, asked.returning(batches.c.submitted_at.is_(None))))


def fail_batch(engine: sa.Engine, batch_id: str, errors: Sequence[LineError]) -> None:
    """End a batch whose file cannot be judged, or no further."""
    rows = [error._asdict() for error in errors]
    execute(engine, _update(batch_id, failed_at=sa.func.now(), errors=rows))


def _update(batch_id: str, **values: object) -> sa.Update:
    return sa.update(batches).where(batches.c.id == batch_id).values(**values)


def _batch(row: Row) -> Batch:
    errors = tuple(LineError(**error) for error in row.errors or ())
    run = {"state": RunState(row.state), "counts": counts_of(row)} if row.state else {"state": None, "counts": None}
    return Batch(**{**named(Batch, row), "errors": errors, **run})
