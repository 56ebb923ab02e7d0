"""Questions to the ledger: where a run stands, which runs there are, what its chunks took. Changes nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import RunNotFoundError
from infra.ledger.engine import disable_nested_loops
from schemas.runs import InvalidRow, RunCounts, RunReport, RunSpec, RunState, Throughput
from schemas.verdicts import Timings

_COLUMNS: Final = """
    id, name, state, spec, accepted, settled, scored, unparseable, dead, accepted * repeat - settled AS pending,
    expected, cancelled, invalid_count, created_at, sealed_at, settled_at, completed_at, fingerprint,
    extract(epoch FROM coalesce(settled_at, clock_timestamp()) - created_at)::float8 AS seconds
"""


class RunStatus(NamedTuple):
    """A run as it stands now. `expected` is None until the run is sealed; `seconds` runs until all has settled."""

    id: str
    name: str
    state: RunState
    spec: RunSpec
    counts: RunCounts
    expected: int | None
    cancelled: bool
    invalid_count: int
    seconds: float
    created_at: datetime
    sealed_at: datetime | None
    completed_at: datetime | None
    fingerprint: str | None


def run_status(engine: sa.Engine, run: str) -> RunStatus:
    """A run by id or name.

    Raises:
        RunNotFoundError: there is no such run.
    """
    status = find_run(engine, run)
    if status is None:
        raise RunNotFoundError(f"no run {run!r}")
    return status


def find_run(engine: sa.Engine, run: str) -> RunStatus | None:
    """A run by id or name, or None where there is none."""
    statement = sa.text(f"SELECT {_COLUMNS} FROM runs WHERE id = :run OR name = :run ORDER BY id = :run DESC LIMIT 1")  # noqa: S608 - no user text in it
    with engine.connect() as connection:
        row = connection.execute(statement, {"run": run}).one_or_none()
    return _status(row) if row else None


def list_runs(engine: sa.Engine, *, limit: int = 20, tenant: str | None = None) -> list[RunStatus]:
    """The newest runs, newest first; with `tenant`, its own alone."""
    statement = sa.text(
        f"SELECT {_COLUMNS} FROM runs WHERE CAST(:tenant AS text) IS NULL OR spec->>'tenant' = :tenant "  # noqa: S608
        "ORDER BY created_at DESC LIMIT :limit"
    )
    with engine.connect() as connection:
        return [_status(row) for row in connection.execute(statement, {"limit": limit, "tenant": tenant})]


def _status(row: sa.Row[tuple[object, ...]]) -> RunStatus:
    counts = RunCounts(
        accepted=row.accepted,
        settled=row.settled,
        scored=row.scored,
        unparseable=row.unparseable,
        dead=row.dead,
        pending=row.pending,
    )
    return RunStatus(
        id=row.id,
        name=row.name,
        state=RunState(row.state),
        spec=RunSpec.model_validate(row.spec, strict=False),
        counts=counts,
        expected=row.expected,
        cancelled=row.cancelled,
        invalid_count=row.invalid_count,
        seconds=row.seconds,
        created_at=row.created_at,
        sealed_at=row.sealed_at,
        completed_at=row.completed_at,
        fingerprint=row.fingerprint,
    )


def stored_report(engine: sa.Engine, run_id: str) -> RunReport | None:
    """The report of a run that has ended, or None."""
    statement = sa.text("SELECT report::text FROM runs WHERE id = :run_id")
    with engine.connect() as connection:
        report: str | None = connection.scalar(statement, {"run_id": run_id})
    return RunReport.model_validate_json(report) if report else None


def invalid_rows(engine: sa.Engine, run_id: str) -> tuple[InvalidRow, ...]:
    """The rows that were skipped when the run was submitted (the first thousand)."""
    with engine.connect() as connection:
        rows = connection.scalar(sa.text("SELECT invalid_rows FROM runs WHERE id = :run_id"), {"run_id": run_id})
    return tuple(InvalidRow(**row) for row in rows or ())


def fingerprint_body(engine: sa.Engine, digest: str | None) -> dict[str, str]:
    """A fingerprint's fields with its digest; empty where none is pinned."""
    if digest is None:
        return {}
    with engine.connect() as connection:
        body = connection.scalar(sa.text("SELECT body FROM fingerprints WHERE digest = :digest"), {"digest": digest})
    return {"digest": digest, **{key: str(value) for key, value in (body or {}).items()}}


def dead_reasons(engine: sa.Engine, run_id: str) -> dict[str, int]:
    """How many items died of what."""
    statement = sa.text(
        "SELECT reason, count(*) AS n FROM verdicts WHERE run_id = :run_id AND outcome = 'dead' "
        "GROUP BY reason ORDER BY n DESC, reason LIMIT 50"
    )
    with engine.connect() as connection:
        return {row.reason: row.n for row in connection.execute(statement, {"run_id": run_id})}


def dead_items(engine: sa.Engine, run_id: str, *, limit: int = 100) -> tuple[str, ...]:
    """Ids of the first items that died."""
    statement = sa.text(
        """
        SELECT DISTINCT i.seq, i.item_id FROM verdicts v JOIN items i USING (run_id, seq)
        WHERE v.run_id = :run_id AND v.outcome = 'dead' ORDER BY i.seq LIMIT :limit
        """
    )
    with engine.connect() as connection:
        disable_nested_loops(connection)
        return tuple(row.item_id for row in connection.execute(statement, {"run_id": run_id, "limit": limit}))


def cached_count(engine: sa.Engine, run_id: str) -> int:
    """How many judgements of a run came from the cache."""
    statement = sa.text("SELECT count(*) FROM verdicts WHERE run_id = :run_id AND cached")
    with engine.connect() as connection:
        return int(connection.scalar(statement, {"run_id": run_id}) or 0)


def item_timings(engine: sa.Engine, run_id: str, seq: int) -> Timings | None:
    """Stage times of the chunk in which an item was judged first, in seconds; None until it was."""
    statement = sa.text(
        """
        SELECT queue_s, render_s, device_s FROM chunks
        WHERE run_id = :run_id AND iteration = 0 AND first_seq <= :seq ORDER BY chunk_no DESC LIMIT 1
        """
    )
    with engine.connect() as connection:
        row = connection.execute(statement, {"run_id": run_id, "seq": seq}).one_or_none()
    return Timings(**row._mapping) if row and row.device_s is not None else None


def throughput(engine: sa.Engine, status: RunStatus) -> Throughput:
    """Speed of a run by the ledger's clock, with the stage times of its chunks in seconds."""
    statement = sa.text(
        """
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY queue_s)::float8 AS queue_p95_s,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p50_s,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY device_s)::float8 AS device_p95_s
        FROM chunks WHERE run_id = :run_id AND device_s IS NOT NULL
        """
    )
    with engine.connect() as connection:
        stages = connection.execute(statement, {"run_id": status.id}).mappings().one()
    rate = status.counts.settled / status.seconds if status.seconds > 0 else None
    return Throughput(seconds=status.seconds, items_per_s=rate, **stages)


def slowest_chunk_s(engine: sa.Engine) -> float | None:
    """Seconds that the slowest chunk of the last day's runs was with its device, waiting included; None: none was."""
    statement = sa.text(
        "SELECT max(device_s)::float8 FROM chunks c JOIN runs r ON r.id = c.run_id "
        "WHERE r.created_at > now() - interval '1 day'"
    )
    with engine.connect() as connection:
        slowest: float | None = connection.scalar(statement)
    return slowest
