"""The collector's half of the ledger: every item settles exactly once, and a run completes exactly once.

One transaction writes the verdicts and moves the run's counters by what was really inserted; the row
lock on the run orders concurrent collectors, so the one that brings the count to its end sees it. Locks
are always taken in the order chunk, verdicts, run, feed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import LibraError, UsageError
from infra.ledger import decisions
from infra.ledger.connection import expect_whole_runs
from infra.ledger.feed import append_to_feeds
from infra.ledger.retention import scrub_settled
from infra.ledger.settled import verdict_from
from infra.metrics import Judged
from schemas.items import Label
from schemas.messages import MessageError, VerdictChunk
from schemas.retention import Retention
from schemas.runs import RunReport
from schemas.verdicts import Fingerprint, Outcome, Verdict

CANCELLED: Final = "cancelled"
"""Reason of the items that were pending when their run was cancelled."""


class Settled(NamedTuple):
    """What one settlement changed: items settled now, and whether the sealed run reached its count."""

    inserted: int
    finished: bool


class FingerprintMismatchError(LibraError):
    """The chunk was judged by another guard fingerprint than the one pinned on its run."""


_LOCK_CHUNK: Final = sa.text(
    """
    SELECT first_seq, size, iteration, EXISTS (
        SELECT 1 FROM submissions s
        WHERE s.run_id = c.run_id AND s.seq BETWEEN c.first_seq AND c.first_seq + c.size - 1) AS submitted
    FROM chunks c WHERE run_id = :run_id AND chunk_no = :chunk_no FOR UPDATE
    """
)

_INSERT_VERDICTS: Final = sa.text(
    """
    WITH fresh AS (
        INSERT INTO verdicts (run_id, seq, iteration, outcome, label, p_unsafe, label_mass, categories, reason, raw,
                              prompt_tokens, windows, attempt, fingerprint)
        SELECT :run_id, seq, :iteration, outcome, label, p_unsafe, label_mass, categories, reason, raw,
               prompt_tokens, windows, :attempt, :fingerprint
        FROM unnest(CAST(:seqs AS bigint[]), CAST(:outcomes AS text[]), CAST(:labels AS text[]),
                    CAST(:p_unsafe AS float8[]), CAST(:label_mass AS float8[]), CAST(:categories AS text[]),
                    CAST(:reasons AS text[]), CAST(:raws AS text[]), CAST(:prompt_tokens AS int[]),
                    CAST(:windows AS int[]))
             AS v(seq, outcome, label, p_unsafe, label_mass, categories, reason, raw, prompt_tokens, windows)
        ON CONFLICT DO NOTHING
        RETURNING seq, outcome
    )
    SELECT count(*) FILTER (WHERE outcome = 'scored') AS scored,
           count(*) FILTER (WHERE outcome = 'unparseable') AS unparseable,
           count(*) FILTER (WHERE outcome = 'dead') AS dead,
           array_agg(seq) FILTER (WHERE CAST(:submitted AS boolean)) AS seqs
    FROM fresh
    """
)

_INSERT_DEAD: Final = sa.text(
    """
    WITH fresh AS (
        INSERT INTO verdicts (run_id, seq, iteration, outcome, reason, prompt_tokens, windows, attempt)
        SELECT c.run_id, s.seq, c.iteration, 'dead', :reason, 0, 1, c.attempt
        FROM chunks c, generate_series(c.first_seq, c.first_seq + c.size - 1) AS s(seq)
        WHERE c.run_id = :run_id AND c.chunk_no = ANY(CAST(:chunk_nos AS bigint[]))
        ON CONFLICT DO NOTHING
        RETURNING seq, iteration
    )
    SELECT 0 AS scored, 0 AS unparseable, count(*) AS dead,
           array_agg(seq) FILTER (WHERE submitted."any") AS seqs,
           array_agg(iteration) FILTER (WHERE submitted."any") AS iterations
    FROM fresh, (SELECT EXISTS (SELECT 1 FROM submissions WHERE run_id = :run_id)) AS submitted("any")
    """
)

_TOUCH_CHUNK: Final = sa.text(
    """
    UPDATE chunks SET settled = settled + :inserted, worker = :worker,
                      queue_s = :queue_s, render_s = :render_s, device_s = :device_s
    WHERE run_id = :run_id AND chunk_no = :chunk_no
    """
)

_NOTE_WASTE: Final = sa.text(
    "UPDATE chunks SET wasted = wasted + :wasted WHERE run_id = :run_id AND chunk_no = :chunk_no"
)

_COUNT_IN: Final = sa.text(
    """
    UPDATE runs SET settled = settled + :inserted, scored = scored + :scored, dead = dead + :dead,
                    unparseable = unparseable + :unparseable, fingerprint = coalesce(fingerprint, :pin),
                    settled_at = CASE WHEN settled + :inserted = expected THEN now() ELSE settled_at END
    WHERE id = :run_id
    RETURNING lane, fingerprint, state = 'sealed' AND settled = expected AS finished, spec->>'tenant' AS tenant
    """
)


def settle(engine: sa.Engine, chunk: VerdictChunk, *, retention: Retention = Retention.FULL) -> Settled:
    """Write a chunk's verdicts, each at most once whatever is delivered again; scrub the texts that need not stay.

    Raises:
        MessageError: the chunk is not in the ledger, or names items that are not its own.
        FingerprintMismatchError: nothing was written; the chunk stays pending.
    """
    fingerprint = chunk.fingerprint
    if fingerprint is not None:
        _know_fingerprint(engine, fingerprint)
    key = {"run_id": chunk.run_id, "chunk_no": chunk.chunk_no}
    with engine.begin() as connection:
        place = _own_place(connection.execute(_LOCK_CHUNK, key).one_or_none(), chunk)
        columns = _columns(chunk, keep_raw=not retention.scrubs)
        fresh = connection.execute(_INSERT_VERDICTS, {**columns, "submitted": place.submitted}).one()
        inserted = fresh.scored + fresh.unparseable + fresh.dead
        wasted = len(chunk.verdicts) - inserted
        if wasted:
            connection.execute(_NOTE_WASTE, {**key, "wasted": wasted})
        if not inserted:
            return Settled(0, finished=False)
        connection.execute(
            _TOUCH_CHUNK, {**key, "inserted": inserted, "worker": chunk.worker, **chunk.timings.model_dump()}
        )
        if fresh.seqs:
            decisions.decide_settled(connection, chunk.run_id, _judged(chunk, fresh.seqs))
        run = _count_in(connection, chunk.run_id, fresh, fingerprint)
        seqs = [verdict.seq for verdict in chunk.verdicts]
        scrub_settled(connection, chunk.run_id, seqs, retention)
        if run.tenant is not None:
            append_to_feeds(connection, chunk.run_id, seqs)
    return Settled(inserted, bool(run.finished))


def settle_dead(
    engine: sa.Engine, run_id: str, chunk_nos: Sequence[int], reason: str, *, retention: Retention = Retention.FULL
) -> Settled:
    """Settle what is still pending in some chunks of a run as dead; scrub the texts that need not stay."""
    key = {"run_id": run_id, "chunk_nos": list(chunk_nos)}
    lock = sa.text(
        "SELECT first_seq, size FROM chunks WHERE run_id = :run_id AND chunk_no = ANY(CAST(:chunk_nos AS bigint[])) "
        "ORDER BY chunk_no FOR UPDATE"
    )
    close = sa.text(
        "UPDATE chunks SET settled = size WHERE run_id = :run_id AND chunk_no = ANY(CAST(:chunk_nos AS bigint[]))"
    )
    with engine.begin() as connection:
        spans = [range(row.first_seq, row.first_seq + row.size) for row in connection.execute(lock, key)]
        fresh = connection.execute(_INSERT_DEAD, {**key, "reason": reason}).one()
        connection.execute(close, key)
        if fresh.seqs:
            decisions.decide_settled(connection, run_id, _died(fresh.seqs, fresh.iterations, reason))
        run = _count_in(connection, run_id, fresh, None)
        seqs = list(itertools.chain.from_iterable(spans))
        scrub_settled(connection, run_id, seqs, retention)
        if run.tenant is not None:
            append_to_feeds(connection, run_id, seqs)
    return Settled(fresh.dead, bool(run.finished))


def _know_fingerprint(engine: sa.Engine, fingerprint: Fingerprint) -> None:
    statement = sa.text(
        "INSERT INTO fingerprints (digest, body) SELECT :digest, CAST(:body AS jsonb) "
        "WHERE NOT EXISTS (SELECT 1 FROM fingerprints WHERE digest = :digest) ON CONFLICT DO NOTHING"
    )
    with engine.begin() as connection:
        connection.execute(statement, {"digest": fingerprint.digest, "body": fingerprint.model_dump_json()})


def _judged(chunk: VerdictChunk, seqs: Sequence[int]) -> list[decisions.Judged]:
    """The verdicts of a chunk that were new."""
    fresh = set(seqs)
    fingerprint = chunk.fingerprint.digest if chunk.fingerprint else None
    return [decisions.Judged(v, chunk.iteration, fingerprint) for v in chunk.verdicts if v.seq in fresh]


def _died(seqs: Sequence[int], iterations: Sequence[int], reason: str) -> list[decisions.Judged]:
    return [
        decisions.Judged(Verdict(seq=seq, outcome=Outcome.DEAD, reason=reason), iteration, None)
        for seq, iteration in zip(seqs, iterations, strict=True)
    ]


def _own_place(
    row: sa.Row[tuple[int, int, int, bool]] | None, chunk: VerdictChunk
) -> sa.Row[tuple[int, int, int, bool]]:
    if row is None:
        raise MessageError(f"chunk {chunk.chunk_id} is not in the ledger")
    own = range(row.first_seq, row.first_seq + row.size)
    if row.iteration != chunk.iteration or any(verdict.seq not in own for verdict in chunk.verdicts):
        raise MessageError(f"chunk {chunk.chunk_id} carries verdicts of items that are not its own")
    return row


def _columns(chunk: VerdictChunk, *, keep_raw: bool) -> dict[str, object]:
    verdicts = chunk.verdicts
    return {
        "run_id": chunk.run_id,
        "iteration": chunk.iteration,
        "attempt": chunk.attempt,
        "fingerprint": chunk.fingerprint.digest if chunk.fingerprint else None,
        "seqs": [verdict.seq for verdict in verdicts],
        "outcomes": [verdict.outcome.value for verdict in verdicts],
        "labels": [verdict.label.value if verdict.label else None for verdict in verdicts],
        "p_unsafe": [verdict.p_unsafe for verdict in verdicts],
        "label_mass": [verdict.label_mass for verdict in verdicts],
        "categories": [",".join(verdict.categories) for verdict in verdicts],
        "reasons": [_storable(verdict.reason) for verdict in verdicts],
        "raws": [_storable(verdict.raw) if keep_raw else None for verdict in verdicts],
        "prompt_tokens": [verdict.prompt_tokens for verdict in verdicts],
        "windows": [verdict.windows for verdict in verdicts],
    }


def _storable(text: str | None) -> str | None:
    """Postgres text holds no NUL; a model can generate one."""
    return None if text is None else text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _count_in(
    connection: sa.Connection, run_id: str, fresh: sa.Row[tuple[int, int, int]], fingerprint: Fingerprint | None
) -> sa.Row[tuple[str, str, bool, str]]:
    values = {
        "run_id": run_id,
        "inserted": fresh.scored + fresh.unparseable + fresh.dead,
        "scored": fresh.scored,
        "unparseable": fresh.unparseable,
        "dead": fresh.dead,
        "pin": fingerprint.digest if fingerprint else None,
    }
    run = connection.execute(_COUNT_IN, values).one()
    if fingerprint and run.lane == "bulk" and run.fingerprint != fingerprint.digest:
        raise FingerprintMismatchError(f"run {run_id} is pinned to {run.fingerprint}, judged by {fingerprint.digest}")
    return run


def begin_finalizing(engine: sa.Engine, run_id: str, *, lease_s: float) -> bool:
    """Take the lease on computing a run's metrics; False where somebody holds it or the run is not ready."""
    statement = sa.text(
        """
        UPDATE runs SET state = 'finalizing', lease_until = now() + make_interval(secs => :lease_s)
        WHERE id = :run_id AND settled = expected
          AND (state = 'sealed' OR (state = 'finalizing' AND lease_until < now()))
        """
    )
    with engine.begin() as connection:
        return connection.execute(statement, {"run_id": run_id, "lease_s": lease_s}).rowcount == 1


def complete(engine: sa.Engine, run_id: str, report: RunReport) -> None:
    """Store the report and end the run: complete, or cancelled where that was asked."""
    statement = sa.text(
        """
        UPDATE runs SET state = CASE WHEN cancelled THEN 'cancelled' ELSE 'complete' END,
                        report = CAST(:report AS jsonb), completed_at = now(), lease_until = NULL
        WHERE id = :run_id AND state = 'finalizing'
        """
    )
    with engine.begin() as connection:
        connection.execute(statement, {"run_id": run_id, "report": report.model_dump_json()})


def cancel(engine: sa.Engine, run_id: str) -> Settled:
    """Seal the run and settle everything still pending as dead with the reason "cancelled".

    Raises:
        UsageError: the run has ended already.
    """
    seal = sa.text(
        """
        UPDATE runs SET cancelled = true, state = 'sealed', expected = accepted * repeat,
                        sealed_at = coalesce(sealed_at, now())
        WHERE id = :run_id AND state IN ('open', 'sealed')
        RETURNING settled = expected
        """
    )
    pending = sa.text("SELECT chunk_no FROM chunks WHERE run_id = :run_id AND settled < size")
    with engine.begin() as connection:
        whole = connection.scalar(seal, {"run_id": run_id})
        if whole is None:
            raise UsageError(f"run {run_id} has ended already")
    # Sealed and committed: a producer still at work can add no chunk to those that are read now.
    with engine.connect() as connection:
        chunk_nos = connection.scalars(pending, {"run_id": run_id}).all()
    if not chunk_nos:
        return Settled(0, finished=bool(whole))
    return settle_dead(engine, run_id, chunk_nos, CANCELLED)


def judged_rows(engine: sa.Engine, run_id: str, *, fetch: int = 5_000) -> Iterator[Judged]:
    """Every settled item of a run with its truth, streamed in item order (one row per iteration)."""
    statement = sa.text(
        """
        SELECT i.source, i.category, i.subcategory, i.truth, v.outcome, v.label, v.p_unsafe
        FROM verdicts v JOIN items i USING (run_id, seq) WHERE v.run_id = :run_id ORDER BY v.seq, v.iteration
        """
    )
    with engine.connect() as connection:
        expect_whole_runs(connection)
        for row in connection.execution_options(yield_per=fetch).execute(statement, {"run_id": run_id}):
            yield Judged(
                source=row.source,
                category=row.category,
                subcategory=row.subcategory,
                truth=Label(row.truth) if row.truth else None,
                outcome=Outcome(row.outcome),
                label=Label(row.label) if row.label else None,
                p_unsafe=row.p_unsafe,
            )


def verdict_of(engine: sa.Engine, run_id: str, seqs: Sequence[int]) -> dict[int, Verdict]:
    """The first iteration's settled verdicts among some items of a run."""
    statement = sa.text(
        """
        SELECT seq, outcome, label, p_unsafe, label_mass, categories, reason, raw, prompt_tokens, windows
        FROM verdicts WHERE run_id = :run_id AND iteration = 0 AND seq = ANY(CAST(:seqs AS bigint[]))
        """
    )
    with engine.connect() as connection:
        rows = connection.execute(statement, {"run_id": run_id, "seqs": list(seqs)}).mappings()
        return {row["seq"]: verdict_from(dict(row)) for row in rows}
