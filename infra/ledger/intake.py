"""The producer's half of the ledger: open a run, accept items, seal it. Nothing here judges or settles."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from infra.errors import DataError, RunError, UsageError
from schemas.items import Item
from schemas.messages import ChunkItem, JudgeChunk
from schemas.runs import InvalidRow, RunSpec, RunState

_INVALID_ROWS_KEPT: Final = 1_000

_ACCEPT: Final = sa.text(
    """
    UPDATE runs SET accepted = accepted + :items, chunks = chunks + :chunks
    WHERE id = :run_id AND state = 'open'
    RETURNING accepted - :items AS first_seq, chunks - :chunks AS first_chunk,
              extract(epoch FROM now())::float8 AS enqueued_at
    """
)

_INSERT_ITEMS: Final = sa.text(
    """
    INSERT INTO items (run_id, seq, item_id, question, response, truth, source, category, subcategory, content_hash)
    SELECT :run_id, :first_seq + row - 1, item_id, question, response, truth, source, category, subcategory, hash
    FROM unnest(CAST(:ids AS text[]), CAST(:questions AS text[]), CAST(:responses AS text[]), CAST(:truths AS text[]),
                CAST(:sources AS text[]), CAST(:categories AS text[]), CAST(:subcategories AS text[]),
                CAST(:hashes AS bytea[]))
         WITH ORDINALITY AS i(item_id, question, response, truth, source, category, subcategory, hash, row)
    """
)

_INSERT_CHUNKS: Final = sa.text(
    """
    INSERT INTO chunks (run_id, chunk_no, iteration, first_seq, size)
    SELECT :run_id, chunk_no, iteration, first_seq, size
    FROM unnest(CAST(:chunk_nos AS bigint[]), CAST(:iterations AS int[]), CAST(:first_seqs AS bigint[]),
                CAST(:sizes AS int[])) AS c(chunk_no, iteration, first_seq, size)
    """
)

_SEAL: Final = sa.text(
    """
    UPDATE runs SET state = 'sealed', expected = accepted * repeat, sealed_at = now(),
                    settled_at = CASE WHEN settled = accepted * repeat THEN now() END,
                    invalid_count = :invalid_count, invalid_rows = CAST(:invalid_rows AS jsonb)
    WHERE id = :run_id AND state = 'open'
    RETURNING settled = expected
    """
)


def new_run_id() -> str:
    """An id that no run has."""
    return "r" + secrets.token_hex(5)


def create_run(engine: sa.Engine, spec: RunSpec, *, run_id: str | None = None, name: str | None = None) -> str:
    """Open a run and return its id.

    Raises:
        UsageError: the name is taken.
    """
    run_id = run_id or new_run_id()
    values = {
        "id": run_id,
        "name": name or run_id,
        "guard": spec.guard,
        "lane": spec.lane.value,
        "repeat": spec.repeat,
        "spec": spec.model_dump_json(),
    }
    statement = sa.text(
        "INSERT INTO runs (id, name, state, guard, lane, repeat, spec) "
        "VALUES (:id, :name, 'open', :guard, :lane, :repeat, CAST(:spec AS jsonb))"
    )
    try:
        with engine.begin() as connection:
            connection.execute(statement, values)
    except IntegrityError as error:
        raise UsageError(f"there is a run named {name!r} already") from error
    return run_id


def accept(
    engine: sa.Engine,
    run_id: str,
    spec: RunSpec,
    groups: Sequence[Sequence[Item]],
    *,
    also: Callable[[sa.Connection, int], None] | None = None,
) -> list[JudgeChunk]:
    """Commit items, one group per chunk, and return the chunks to enqueue, once per iteration.

    `also` is called in the same transaction with the first item's number; the others follow in the order of the groups.

    Raises:
        RunError: the run is not open.
        DataError: an item id is in the run already.
    """
    batch = [item for group in groups for item in group]
    counts = {"run_id": run_id, "items": len(batch), "chunks": len(groups) * spec.repeat}
    try:
        with engine.begin() as connection:
            row = connection.execute(_ACCEPT, counts).one_or_none()
            if row is None:
                raise RunError(f"run {run_id} takes no more items: it is sealed, cancelled or gone")
            connection.execute(_INSERT_ITEMS, _item_columns(run_id, row.first_seq, batch))
            chunks = list(_cut(run_id, spec, groups, row))
            connection.execute(_INSERT_CHUNKS, _chunk_columns(run_id, chunks))
            if also is not None:
                also(connection, row.first_seq)
    except IntegrityError as error:
        raise DataError(f"an item id is in run {run_id} already: {_detail(error)}") from error
    return chunks


def _item_columns(run_id: str, first_seq: int, batch: Sequence[Item]) -> dict[str, object]:
    return {
        "run_id": run_id,
        "first_seq": first_seq,
        "ids": [item.id for item in batch],
        "questions": [item.question for item in batch],
        "responses": [item.response for item in batch],
        "truths": [None if item.truth is None else item.truth.value for item in batch],
        "sources": [item.source for item in batch],
        "categories": [item.category for item in batch],
        "subcategories": [item.subcategory for item in batch],
        "hashes": [item.content_hash for item in batch],
    }


def _cut(
    run_id: str, spec: RunSpec, groups: Sequence[Sequence[Item]], place: sa.Row[tuple[int, int, float]]
) -> Iterator[JudgeChunk]:
    first_seq, chunk_no = place.first_seq, place.first_chunk
    for group in groups:
        wire = tuple(
            ChunkItem(seq=first_seq + offset, question=item.question, response=item.response)
            for offset, item in enumerate(group)
        )
        for iteration in range(spec.repeat):
            yield JudgeChunk(
                run_id=run_id,
                chunk_no=chunk_no,
                iteration=iteration,
                guard=spec.guard,
                mode=spec.mode,
                lane=spec.lane,
                enqueued_at=place.enqueued_at,
                items=wire,
            )
            chunk_no += 1
        first_seq += len(group)


def _chunk_columns(run_id: str, chunks: Sequence[JudgeChunk]) -> dict[str, object]:
    return {
        "run_id": run_id,
        "chunk_nos": [chunk.chunk_no for chunk in chunks],
        "iterations": [chunk.iteration for chunk in chunks],
        "first_seqs": [chunk.items[0].seq for chunk in chunks],
        "sizes": [len(chunk.items) for chunk in chunks],
    }


def _detail(error: IntegrityError) -> str:
    diagnostic = getattr(error.orig, "diag", None)
    return str(getattr(diagnostic, "message_detail", None) or error.orig).strip()


def seal(engine: sa.Engine, run_id: str, *, invalid_count: int = 0, invalid_rows: Sequence[InvalidRow] = ()) -> bool:
    """Fix the expected count; True where every item had settled by then, so that nobody else will finish the run.

    Sealing a run that is sealed already changes nothing and returns False.
    """
    rows = [row.model_dump() for row in invalid_rows[:_INVALID_ROWS_KEPT]]
    values = {
        "run_id": run_id,
        "invalid_count": invalid_count,
        "invalid_rows": json.dumps(rows, ensure_ascii=False),
    }
    with engine.begin() as connection:
        return bool(connection.scalar(_SEAL, values))


def accepted_hashes(engine: sa.Engine, run_id: str, item_ids: Sequence[str]) -> dict[str, bytes]:
    """Content hash by item id, for those of the ids that the run holds already (resume compares them)."""
    statement = sa.text(
        "SELECT item_id, content_hash FROM items WHERE run_id = :run_id AND item_id = ANY(CAST(:ids AS text[]))"
    )
    with engine.connect() as connection:
        rows = connection.execute(statement, {"run_id": run_id, "ids": list(item_ids)})
        return {row.item_id: bytes(row.content_hash) for row in rows}


def live_run(engine: sa.Engine, spec: RunSpec, *, tenant: str) -> str:
    """The id of today's unsealed run of a tenant and guard (by the ledger's clock), opened where there is none."""
    with engine.begin() as connection:
        day = connection.scalar(sa.text("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')"))
        name = f"live-{tenant}-{spec.guard}-{spec.mode}-{day}"
        known = connection.scalar(sa.text("SELECT id FROM runs WHERE name = :name"), {"name": name})
    if known is not None:
        return str(known)
    try:
        return create_run(engine, spec, name=name)
    except UsageError:
        return live_run(engine, spec, tenant=tenant)


def ledger_now(engine: sa.Engine) -> float:
    """The ledger's clock, epoch seconds: the one that chunks are stamped by."""
    with engine.connect() as connection:
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0)


def state_of(engine: sa.Engine, run_id: str) -> RunState:
    """The run's state.

    Raises:
        UsageError: there is no such run.
    """
    with engine.connect() as connection:
        state = connection.scalar(sa.text("SELECT state FROM runs WHERE id = :run_id"), {"run_id": run_id})
    if state is None:
        raise UsageError(f"no run {run_id}")
    return RunState(state)
