"""Uploaded files and the batches over them: bulk runs that somebody ordered by file.

A batch is taken up under a lease, so that one whose gateway died is taken up by another.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.submissions import IdempotencyKey, make_once
from schemas.runs import RunCounts, RunState

_FILE: Final = "id, tenant, filename, purpose, length(content) AS size_bytes, created_at"

_BATCH: Final = """
    b.id, b.tenant, b.input_file_id, b.endpoint, b.metadata, b.run_id, b.errors, b.cancelling_at, b.failed_at,
    b.submitted_at, b.created_at, r.state, r.accepted, r.settled, r.scored, r.unparseable, r.dead,
    r.created_at AS run_at, r.settled_at, r.completed_at
"""
_BATCHES: Final = f"SELECT {_BATCH} FROM batches b LEFT JOIN runs r ON r.id = b.run_id"  # noqa: S608

_CLAIM: Final = sa.text(
    """
    UPDATE batches SET lease_until = now() + make_interval(secs => :lease_s)
    WHERE id = (
        SELECT id FROM batches b
        WHERE submitted_at IS NULL AND failed_at IS NULL AND (lease_until IS NULL OR lease_until < now())
        ORDER BY EXISTS (SELECT 1 FROM batches o WHERE o.tenant = b.tenant AND o.submitted_at IS NULL
                         AND o.failed_at IS NULL AND o.lease_until >= now()), created_at
        LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id
    """
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
    """What is wrong with a line of a batch's file; lines count from 1."""

    line: int
    code: str
    message: str
    param: str | None = None


class Batch(NamedTuple):
    """A batch and how its run fares; the run's part is None until there is one."""

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


def store_file(engine: sa.Engine, *, tenant: str, filename: str, purpose: str, content: bytes) -> StoredFile:
    """Keep a file."""
    values = {
        "id": "file-" + secrets.token_hex(10),
        "tenant": tenant,
        "filename": filename,
        "purpose": purpose,
        "content": content,
    }
    statement = sa.text(
        "INSERT INTO files (id, tenant, filename, purpose, content) "  # noqa: S608
        f"VALUES (:id, :tenant, :filename, :purpose, :content) RETURNING {_FILE}"
    )
    with engine.begin() as connection:
        return StoredFile(*connection.execute(statement, values).one())


def find_file(engine: sa.Engine, file_id: str) -> StoredFile | None:
    """A file, or None where there is none."""
    with engine.connect() as connection:
        row = connection.execute(sa.text(f"SELECT {_FILE} FROM files WHERE id = :id"), {"id": file_id}).one_or_none()  # noqa: S608
    return StoredFile(*row) if row else None


def file_content(engine: sa.Engine, file_id: str) -> bytes | None:
    """A file's content, or None where it is gone."""
    with engine.connect() as connection:
        content = connection.scalar(sa.text("SELECT content FROM files WHERE id = :id"), {"id": file_id})
    return None if content is None else bytes(content)


def delete_file(engine: sa.Engine, file_id: str) -> None:
    """Forget a file."""
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM files WHERE id = :id"), {"id": file_id})


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
    values = {
        "id": "batch_" + secrets.token_hex(10),
        "tenant": tenant,
        "input_file_id": input_file_id,
        "endpoint": endpoint,
        "metadata": None if metadata is None else json.dumps(metadata, ensure_ascii=False),
    }
    statement = sa.text(
        "INSERT INTO batches (id, tenant, input_file_id, endpoint, metadata) "
        "VALUES (:id, :tenant, :input_file_id, :endpoint, CAST(:metadata AS jsonb))"
    )
    with engine.begin() as connection:
        if once is not None:
            make_once(connection, once, {"batch": values["id"]})
        connection.execute(statement, values)
    return str(values["id"])


def find_batch(engine: sa.Engine, batch_id: str) -> Batch | None:
    """A batch, or None where there is none."""
    with engine.connect() as connection:
        row = connection.execute(sa.text(f"{_BATCHES} WHERE b.id = :id"), {"id": batch_id}).one_or_none()
    return _batch(row) if row else None


def list_batches(engine: sa.Engine, tenant: str, *, after: str | None, limit: int) -> list[Batch]:
    """A tenant's batches, newest first, those behind `after` where it is given."""
    statement = sa.text(
        f"{_BATCHES} WHERE b.tenant = :tenant AND (CAST(:after AS text) IS NULL OR (b.created_at, b.id) < "  # noqa: S608
        "(SELECT created_at, id FROM batches WHERE id = :after)) ORDER BY b.created_at DESC, b.id DESC LIMIT :limit"
    )
    with engine.connect() as connection:
        rows = connection.execute(statement, {"tenant": tenant, "after": after, "limit": limit})
        return [_batch(row) for row in rows]


def claim_batch(engine: sa.Engine, *, lease_s: float) -> str | None:
    """The id of a batch to take up, tenants first of which none is in hand; None where nothing waits."""
    with engine.begin() as connection:
        claimed: str | None = connection.scalar(_CLAIM, {"lease_s": lease_s})
    return claimed


def renew_batch(engine: sa.Engine, batch_id: str, *, lease_s: float) -> bool:
    """Keep a batch in hand; False where somebody wants it cancelled."""
    statement = sa.text(
        "UPDATE batches SET lease_until = now() + make_interval(secs => :lease_s) WHERE id = :id "
        "RETURNING cancelling_at IS NULL"
    )
    with engine.begin() as connection:
        return bool(connection.scalar(statement, {"id": batch_id, "lease_s": lease_s}))


def begin_run(engine: sa.Engine, batch_id: str, run_id: str) -> str:
    """Note the batch's run before it is opened; the id that counts, which is an earlier one where there was one."""
    statement = sa.text("UPDATE batches SET run_id = coalesce(run_id, :run_id) WHERE id = :id RETURNING run_id")
    with engine.begin() as connection:
        return str(connection.scalar(statement, {"id": batch_id, "run_id": run_id}))


def end_submission(engine: sa.Engine, batch_id: str) -> None:
    """Everything is in the run."""
    _set_moment(engine, batch_id, "submitted_at")


def ask_to_cancel(engine: sa.Engine, batch_id: str) -> None:
    """Have whoever submits the batch stop."""
    _set_moment(engine, batch_id, "cancelling_at")


def fail_batch(engine: sa.Engine, batch_id: str, errors: Sequence[LineError]) -> None:
    """End a batch whose file cannot be judged; nothing of it was."""
    statement = sa.text("UPDATE batches SET failed_at = now(), errors = CAST(:errors AS jsonb) WHERE id = :id")
    rows = [error._asdict() for error in errors]
    with engine.begin() as connection:
        connection.execute(statement, {"id": batch_id, "errors": json.dumps(rows, ensure_ascii=False)})


def _set_moment(engine: sa.Engine, batch_id: str, column: str) -> None:
    statement = sa.text(f"UPDATE batches SET {column} = coalesce({column}, now()) WHERE id = :id")  # noqa: S608
    with engine.begin() as connection:
        connection.execute(statement, {"id": batch_id})


def _batch(row: sa.Row[tuple[object, ...]]) -> Batch:
    counts = None
    if row.state is not None:
        counts = RunCounts(
            accepted=row.accepted,
            settled=row.settled,
            scored=row.scored,
            unparseable=row.unparseable,
            dead=row.dead,
            pending=row.accepted - row.settled,
        )
    return Batch(
        id=row.id,
        tenant=row.tenant,
        input_file_id=row.input_file_id,
        endpoint=row.endpoint,
        metadata=row.metadata,
        run_id=row.run_id,
        errors=tuple(LineError(**error) for error in row.errors or ()),
        cancelling_at=row.cancelling_at,
        failed_at=row.failed_at,
        submitted_at=row.submitted_at,
        created_at=row.created_at,
        state=RunState(row.state) if row.state else None,
        counts=counts,
        run_at=row.run_at,
        settled_at=row.settled_at,
        completed_at=row.completed_at,
    )
