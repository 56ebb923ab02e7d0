"""The collector's half of the ledger: every item settles exactly once, and a run completes exactly once.

One transaction writes the verdicts and moves the run's counters by what was really inserted; the row
lock on the run orders concurrent collectors, so the one that brings the count to its end sees it.

Locks are always taken in one order, over all runs of a transaction: chunks, verdicts, runs by id, feeds by tenant. A
row that somebody else keeps locked delays what needs it alone: such chunks have the outcome `BusyError`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import LibraError, RunEndedError
from infra.ledger import decisions
from infra.ledger.engine import Row, autocommit, named, take_long
from infra.ledger.faults import is_lock_timeout, is_passing
from infra.ledger.feed import append_to_feeds
from infra.ledger.retention import scrub_settled
from schemas.items import Retention
from schemas.messages import MessageError, VerdictChunk
from schemas.verdicts import Fingerprint, Outcome, Verdict

CANCELLED: Final = "cancelled"
"""Reason of the items that were pending when their run was cancelled."""


class Settled(NamedTuple):
    """One settlement's changes: items settled now, and whether the sealed run reached its count.

    Then the run's guard and lane, and the items by outcome; `cached` ones are among the scored.
    """

    inserted: int
    finished: bool
    guard: str = ""
    lane: str = ""
    scored: int = 0
    unsafe: int = 0
    unparseable: int = 0
    dead: int = 0
    cached: int = 0


class FingerprintMismatchError(LibraError):
    """The chunk was judged by another guard fingerprint than the one pinned on its run."""


class BusyError(LibraError):
    """A row that the chunk needs is locked by somebody else: nothing was written, try again later."""


class RunBusyError(BusyError):
    """It is the run's own row, or its tenant's feed: all chunks of the run wait."""


# The first statement of a settling transaction: makes the fingerprints known and locks the chunks. One that somebody
# else has locked is left out, not waited for.
_LOCK_CHUNKS: Final = sa.text(
    """
    WITH known AS (
        INSERT INTO fingerprints (digest, body)
        SELECT digest, CAST(body AS jsonb)
        FROM unnest(CAST(:digests AS text[]), CAST(:bodies AS text[])) AS f(digest, body)
        WHERE NOT EXISTS (SELECT 1 FROM fingerprints k WHERE k.digest = f.digest)
        ON CONFLICT DO NOTHING
    )
    SELECT c.run_id, c.chunk_no, c.first_seq, c.size, c.iteration, c.nonce, EXISTS (
        SELECT 1 FROM submissions s
        WHERE s.run_id = c.run_id AND s.seq BETWEEN c.first_seq AND c.first_seq + c.size - 1) AS submitted,
        r.guard, r.lane
    FROM chunks c JOIN runs r ON r.id = c.run_id
    WHERE (c.run_id, c.chunk_no) IN (SELECT * FROM unnest(CAST(:run_ids AS text[]), CAST(:chunk_nos AS bigint[])))
    ORDER BY c.run_id, c.chunk_no FOR UPDATE OF c SKIP LOCKED
    """
)
_KNOWN_CHUNKS: Final = sa.text(
    """
    SELECT run_id, chunk_no FROM chunks
    WHERE (run_id, chunk_no) IN (SELECT * FROM unnest(CAST(:run_ids AS text[]), CAST(:chunk_nos AS bigint[])))
    """
)

# Arrays in, aligned by position: `_columns` makes one array a column. `chunk` numbers the chunks by `place`, from 1,
# and each verdict names its chunk's place. Verdicts that are there already conflict and fall away; what `fresh`
# really inserted is counted per chunk (`counted`), moves the chunk's counter (`touched`), and is returned so that
# the run's counters move by the same numbers. The chunks are locked by then; the run's row is locked last.
_INSERT_VERDICTS: Final = sa.text(
    """
    WITH chunk AS (
        SELECT * FROM unnest(CAST(:run_ids AS text[]), CAST(:chunk_nos AS bigint[]), CAST(:iterations AS int[]),
                             CAST(:attempts AS int[]), CAST(:fingerprints AS text[]), CAST(:workers AS text[]),
                             CAST(:queue_s AS real[]), CAST(:render_s AS real[]), CAST(:device_s AS real[]),
                             CAST(:sizes AS int[]), CAST(:submitted AS boolean[]), CAST(:spent_s AS real[]),
                             CAST(:spent_prompt_tokens AS int[]), CAST(:spent_new_tokens AS int[]),
                             CAST(:devices AS text[]), CAST(:nonces AS text[]))
             WITH ORDINALITY AS c(run_id, chunk_no, iteration, attempt, fingerprint, worker, queue_s, render_s,
                                  device_s, verdicts, submitted, spent_s, spent_prompt_tokens, spent_new_tokens,
                                  device, nonce, place)
    ), verdict AS (
        SELECT * FROM unnest(CAST(:places AS bigint[]), CAST(:seqs AS bigint[]), CAST(:outcomes AS text[]),
                             CAST(:labels AS text[]), CAST(:p_unsafe AS float8[]), CAST(:label_mass AS float8[]),
                             CAST(:categories AS text[]), CAST(:reasons AS text[]), CAST(:raws AS text[]),
                             CAST(:prompt_tokens AS int[]), CAST(:windows AS int[]), CAST(:cached AS boolean[]),
                             CAST(:categories_by AS text[]))
             AS v(place, seq, outcome, label, p_unsafe, label_mass, categories, reason, raw, prompt_tokens, windows,
                  cached, categories_by)
    ), fresh AS (
        INSERT INTO verdicts (run_id, seq, iteration, outcome, label, p_unsafe, label_mass, categories, reason, raw,
                              prompt_tokens, windows, attempt, fingerprint, cached, categories_by)
        SELECT run_id, seq, iteration, outcome, label, p_unsafe, label_mass, categories, reason, raw,
               prompt_tokens, windows, attempt, fingerprint, cached, categories_by
        FROM verdict JOIN chunk USING (place)
        ON CONFLICT DO NOTHING
        RETURNING run_id, seq, iteration, outcome, label, cached
    ), counted AS (
        SELECT place, count(outcome) AS inserted,
               count(*) FILTER (WHERE outcome = 'scored') AS scored,
               count(*) FILTER (WHERE label = 'unsafe') AS unsafe,
               count(*) FILTER (WHERE cached) AS cached,
               count(*) FILTER (WHERE outcome = 'unparseable') AS unparseable,
               count(*) FILTER (WHERE outcome = 'dead') AS dead,
               array_agg(seq) FILTER (WHERE outcome IS NOT NULL AND submitted) AS seqs
        FROM (SELECT DISTINCT place, seq FROM verdict) AS named
             JOIN chunk USING (place) LEFT JOIN fresh USING (run_id, seq, iteration)
        GROUP BY place
    ), touched AS (  -- a chunk delivered twice keeps the worker and the times of the delivery that counted
        UPDATE chunks SET settled = chunks.settled + inserted, wasted = wasted + verdicts - inserted,
                          worker = CASE WHEN inserted > 0 THEN chunk.worker ELSE chunks.worker END,
                          queue_s = CASE WHEN inserted > 0 THEN chunk.queue_s ELSE chunks.queue_s END,
                          render_s = CASE WHEN inserted > 0 THEN chunk.render_s ELSE chunks.render_s END,
                          device_s = CASE WHEN inserted > 0 THEN chunk.device_s ELSE chunks.device_s END,
                          spent_s = CASE WHEN inserted > 0 THEN chunk.spent_s ELSE chunks.spent_s END,
                          spent_prompt_tokens = CASE WHEN inserted > 0 THEN chunk.spent_prompt_tokens
                                                     ELSE chunks.spent_prompt_tokens END,
                          spent_new_tokens = CASE WHEN inserted > 0 THEN chunk.spent_new_tokens
                                                  ELSE chunks.spent_new_tokens END,
                          device = CASE WHEN inserted > 0 THEN chunk.device ELSE chunks.device END,
                          judged_nonce = CASE WHEN inserted > 0 THEN chunk.nonce ELSE chunks.judged_nonce END
        FROM chunk JOIN counted USING (place)
        WHERE chunks.run_id = chunk.run_id AND chunks.chunk_no = chunk.chunk_no
    )
    SELECT run_id, inserted, scored, unsafe, unparseable, dead, cached, seqs
    FROM chunk JOIN counted USING (place) ORDER BY place
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
    SELECT count(*) AS dead,
           array_agg(seq) FILTER (WHERE submitted."any") AS seqs,
           array_agg(iteration) FILTER (WHERE submitted."any") AS iterations
    FROM fresh, (SELECT EXISTS (SELECT 1 FROM submissions WHERE run_id = :run_id)) AS submitted("any")
    """
)

# The run's row is locked from here to the commit: of two collectors that settle the last chunks of a run, the second
# sees the first one's count, so that exactly one of them finds it finished.
_COUNT_IN: Final = sa.text(
    """
    UPDATE runs SET settled = settled + :inserted, scored = scored + :scored, dead = dead + :dead,
                    unparseable = unparseable + :unparseable, fingerprint = coalesce(fingerprint, :pin),
                    settled_at = CASE WHEN settled + :inserted = expected THEN now() ELSE settled_at END
    WHERE id = :run_id
    RETURNING guard, lane, fingerprint, state = 'sealed' AND settled = expected AS finished
    """
)


Outcomes = list[Settled | Exception]


def settle(engine: sa.Engine, chunk: VerdictChunk, *, retention: Retention = Retention.FULL) -> Settled:
    """Write a chunk's verdicts, each at most once whatever is delivered again; scrub the texts that need not stay.

    Raises:
        MessageError: the chunk is not in the ledger, or names items that are not its own.
        FingerprintMismatchError: nothing was written; the chunk stays pending.
        BusyError: nothing was written; somebody else has locked a row that it needs.
    """
    (outcome,) = settle_all(engine, [chunk], retention=retention)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def settle_all(engine: sa.Engine, chunks: Sequence[VerdictChunk], *, retention: Retention = Retention.FULL) -> Outcomes:
    """Settle several chunks in one transaction; gives each its outcome: what changed, or the error `settle` raises.

    Nothing is raised. A chunk that is refused, or whatever else is wrong with it, costs the others nothing but a
    transaction each; so do two copies of one chunk. One whose run is locked costs a transaction for each run. Where a
    run reached its count, the last of its chunks says so.
    """
    together = len({chunk.chunk_id for chunk in chunks}) == len(chunks)
    if together:
        try:
            return _settle_together(engine, chunks, retention)
        except Exception as error:  # noqa: BLE001 - a verdict is dropped by no error, foreseen or not
            if is_lock_timeout(error):
                return _settle_by_run(engine, chunks, retention, error)
            if len(chunks) == 1 or is_passing(error):
                return [error for _ in chunks]
    return [outcome for chunk in chunks for outcome in settle_all(engine, [chunk], retention=retention)]


def _settle_by_run(
    engine: sa.Engine, chunks: Sequence[VerdictChunk], retention: Retention, error: Exception
) -> Outcomes:
    """Settle the chunks of each run by themselves; those of a single run are busy: its row or its feed is locked."""
    runs = sorted({chunk.run_id for chunk in chunks})
    if len(runs) == 1:
        busy = RunBusyError(f"run {runs[0]} is locked")
        busy.__cause__ = error
        return [busy for _ in chunks]
    outcome_of: dict[str, Settled | Exception] = {}
    for run_id in runs:
        own = [chunk for chunk in chunks if chunk.run_id == run_id]
        outcome_of |= zip((chunk.chunk_id for chunk in own), settle_all(engine, own, retention=retention), strict=True)
    return [outcome_of[chunk.chunk_id] for chunk in chunks]


def _settle_together(engine: sa.Engine, chunks: Sequence[VerdictChunk], retention: Retention) -> Outcomes:
    with engine.begin() as connection:
        rows = _lock(connection, chunks)
        mine = [chunk for chunk in chunks if chunk.chunk_id in rows]
        settled = _write(connection, mine, [rows[chunk.chunk_id] for chunk in mine], retention) if mine else []
    outcome_of = dict(zip((chunk.chunk_id for chunk in mine), settled, strict=True))
    return [outcome_of.get(chunk.chunk_id) or BusyError(f"chunk {chunk.chunk_id} is locked") for chunk in chunks]


def _write(
    connection: sa.Connection, chunks: Sequence[VerdictChunk], own: Sequence[Row], retention: Retention
) -> list[Settled]:
    """Write the verdicts of chunks whose rows, `own`, this transaction has locked."""
    submitted = [row.submitted for row in own]
    fresh = connection.execute(_INSERT_VERDICTS, _columns(chunks, submitted, keep_raw=not retention.scrubs)).all()
    for chunk, row in zip(chunks, fresh, strict=True):
        if row.seqs:
            seqs, digest = set(row.seqs), chunk.fingerprint.digest if chunk.fingerprint else None
            news = [decisions.StoredVerdict(v, chunk.iteration, digest) for v in chunk.verdicts if v.seq in seqs]
            decisions.decide_settled(connection, chunk.run_id, news)
    places_of: dict[str, list[int]] = {}
    for place, chunk in sorted(enumerate(chunks), key=lambda pair: (pair[1].run_id, pair[0])):
        places_of.setdefault(chunk.run_id, []).append(place)
    finished: dict[int, bool] = {}
    for run_id, all_places in places_of.items():
        places = [place for place in all_places if fresh[place].inserted]
        if places:
            rows = [fresh[place] for place in places]
            scored, unparseable = sum(row.scored for row in rows), sum(row.unparseable for row in rows)
            settled = _Fresh(scored, unparseable, dead=sum(row.dead for row in rows))
            run = _count_in(connection, run_id, settled, {chunks[place].fingerprint for place in places})
            finished[all_places[-1]] = bool(run.finished)
            judged = [verdict.seq for place in places for verdict in chunks[place].verdicts]
            scrub_settled(connection, run_id, judged, retention)
    append_to_feeds(connection, ((chunks[at].run_id, seq) for at, row in enumerate(fresh) for seq in row.seqs or ()))
    return [
        Settled(**named(Settled, row), finished=finished.get(place, False), guard=chunk.guard, lane=chunk.lane)
        for place, (chunk, row) in enumerate(zip(own, fresh, strict=True))
    ]


_LOCK_SPANS: Final = """
    SELECT c.chunk_no, c.first_seq, c.size FROM chunks c JOIN unnest(
        CAST(:chunk_nos AS bigint[]), CAST(:since AS timestamptz[])) AS w(chunk_no, since) USING (chunk_no)
    WHERE c.run_id = :run_id {unchanged}
    ORDER BY c.chunk_no FOR UPDATE OF c
"""
_LOCK_PENDING: Final = sa.text(_LOCK_SPANS.format(unchanged=""))
_LOCK_LOST: Final = sa.text(_LOCK_SPANS.format(unchanged="AND c.overtaken_at = w.since") + " SKIP LOCKED")


def settle_dead(
    engine: sa.Engine,
    run_id: str,
    chunk_nos: Sequence[int],
    reason: str,
    *,
    lost_since: Sequence[datetime | None] | None = None,
    retention: Retention = Retention.FULL,
) -> Settled:
    """Settle what is still pending in some chunks of a run as dead; scrub the texts that need not stay.

    With `lost_since`, the start of each chunk's lease, a chunk that moved on since then is left alone, and so is one
    that somebody else has locked.
    """
    since = [None] * len(chunk_nos) if lost_since is None else list(lost_since)
    values = {"run_id": run_id, "chunk_nos": list(chunk_nos), "since": since}
    close = sa.text(
        "UPDATE chunks SET settled = size WHERE run_id = :run_id AND chunk_no = ANY(CAST(:chunk_nos AS bigint[]))"
    )
    with engine.begin() as connection:
        take_long(connection)
        locked = connection.execute(_LOCK_PENDING if lost_since is None else _LOCK_LOST, values).all()
        key = {"run_id": run_id, "chunk_nos": [row.chunk_no for row in locked]}
        died = connection.execute(_INSERT_DEAD, {**key, "reason": reason}).one()
        connection.execute(close, key)
        if died.seqs:
            dead = [
                decisions.StoredVerdict(Verdict(seq=seq, outcome=Outcome.DEAD, reason=reason), iteration, None)
                for seq, iteration in zip(died.seqs, died.iterations, strict=True)
            ]
            decisions.decide_settled(connection, run_id, dead)
        run = _count_in(connection, run_id, _Fresh(dead=died.dead))
        if retention.scrubs:
            spans = (range(row.first_seq, row.first_seq + row.size) for row in locked)
            scrub_settled(connection, run_id, list(itertools.chain.from_iterable(spans)), retention)
        append_to_feeds(connection, ((run_id, seq) for seq in died.seqs or ()))
    return Settled(died.dead, bool(run.finished), run.guard, run.lane, dead=died.dead)


def _lock(connection: sa.Connection, chunks: Sequence[VerdictChunk]) -> Mapping[str, Row]:
    """Lock the chunks, and see that they hold the items they bring verdicts on; those that are busy are left out.

    Gives of each its run's guard and lane, and whether some of its items were submitted through the gateway.
    """
    known = {f.digest: f.model_dump_json() for f in {chunk.fingerprint for chunk in chunks} if f is not None}
    values = {
        "digests": sorted(known),
        "bodies": [known[digest] for digest in sorted(known)],
        "run_ids": [chunk.run_id for chunk in chunks],
        "chunk_nos": [chunk.chunk_no for chunk in chunks],
    }
    rows = {f"{row.run_id}/{row.chunk_no}": row for row in connection.execute(_LOCK_CHUNKS, values)}
    busy: set[str] = set()
    if len(rows) < len(chunks):
        missing = [chunk for chunk in chunks if chunk.chunk_id not in rows]
        keys = {"run_ids": [chunk.run_id for chunk in missing], "chunk_nos": [chunk.chunk_no for chunk in missing]}
        busy = {f"{row.run_id}/{row.chunk_no}" for row in connection.execute(_KNOWN_CHUNKS, keys)}
    for chunk in chunks:
        if chunk.chunk_id in busy:
            continue
        row = rows.get(chunk.chunk_id)
        if row is None:
            raise MessageError(f"chunk {chunk.chunk_id} is not in the ledger")
        own = range(row.first_seq, row.first_seq + row.size)
        if row.iteration != chunk.iteration or any(verdict.seq not in own for verdict in chunk.verdicts):
            raise MessageError(f"chunk {chunk.chunk_id} carries verdicts of items that are not its own")
        # A worker that knows of no nonces says None: it may settle anything, or a rolling upgrade would stop the fleet.
        if chunk.nonce is not None and chunk.nonce != (row.nonce or ""):
            raise MessageError(f"chunk {chunk.chunk_id} was judged for another commit, which the ledger does not hold")
    return rows


def _columns(chunks: Sequence[VerdictChunk], submitted: list[bool], *, keep_raw: bool) -> dict[str, object]:
    placed = [(place, verdict) for place, chunk in enumerate(chunks, start=1) for verdict in chunk.verdicts]
    verdicts = [verdict for _, verdict in placed]
    return {
        "run_ids": [chunk.run_id for chunk in chunks],
        "chunk_nos": [chunk.chunk_no for chunk in chunks],
        "iterations": [chunk.iteration for chunk in chunks],
        "attempts": [chunk.attempt for chunk in chunks],
        "fingerprints": [chunk.fingerprint.digest if chunk.fingerprint else None for chunk in chunks],
        "workers": [chunk.worker for chunk in chunks],
        "queue_s": [chunk.timings.queue_s for chunk in chunks],
        "render_s": [chunk.timings.render_s for chunk in chunks],
        "device_s": [chunk.timings.device_s for chunk in chunks],
        "sizes": [len(chunk.verdicts) for chunk in chunks],
        "spent_s": [chunk.spent and chunk.spent.device_s for chunk in chunks],
        "spent_prompt_tokens": [chunk.spent and chunk.spent.prompt_tokens for chunk in chunks],
        "spent_new_tokens": [chunk.spent and chunk.spent.new_tokens for chunk in chunks],
        "devices": [chunk.spent and chunk.spent.device for chunk in chunks],
        "nonces": [chunk.nonce for chunk in chunks],
        "submitted": submitted,
        "places": [place for place, _ in placed],
        "seqs": [verdict.seq for verdict in verdicts],
        "outcomes": [verdict.outcome.value for verdict in verdicts],
        "labels": [verdict.label.value if verdict.label else None for verdict in verdicts],
        "p_unsafe": [verdict.p_unsafe for verdict in verdicts],
        "label_mass": [verdict.label_mass for verdict in verdicts],
        "categories": [",".join(verdict.categories) for verdict in verdicts],
        "reasons": [verdict.reason for verdict in verdicts],
        "raws": [verdict.raw if keep_raw else None for verdict in verdicts],
        "prompt_tokens": [verdict.prompt_tokens for verdict in verdicts],
        "windows": [verdict.windows for verdict in verdicts],
        "cached": [verdict.cached for verdict in verdicts],
        "categories_by": [verdict.categories_by and verdict.categories_by.value for verdict in verdicts],
    }


class _Fresh(NamedTuple):
    """Items of a run that settle now, by outcome."""

    scored: int = 0
    unparseable: int = 0
    dead: int = 0


def _count_in(
    connection: sa.Connection, run_id: str, fresh: _Fresh, fingerprints: Collection[Fingerprint | None] = ()
) -> sa.Row[tuple[str, str, str, bool]]:
    """Move the run's counters; the row says whether the run, sealed, reached its count, and whose run it is.

    Raises:
        FingerprintMismatchError: a bulk run is pinned to another fingerprint than one of these.
    """
    digests = sorted(fingerprint.digest for fingerprint in fingerprints if fingerprint)
    pin = digests[0] if digests else None
    run = connection.execute(_COUNT_IN, {"run_id": run_id, "inserted": sum(fresh), "pin": pin, **fresh._asdict()}).one()
    if run.lane == "bulk" and (others := [digest for digest in digests if digest != run.fingerprint]):
        raise FingerprintMismatchError(f"run {run_id} is pinned to {run.fingerprint}, judged by {others[0]}")
    return run


def cancel(engine: sa.Engine, run_id: str) -> Settled:
    """Seal the run and settle everything still pending as dead with the reason "cancelled".

    Raises:
        RunEndedError: the run has ended already.
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
    with autocommit(engine) as connection:
        whole = connection.scalar(seal, {"run_id": run_id})
        if whole is None:
            raise RunEndedError(f"run {run_id} has ended already")
        # Sealed and committed: a producer still at work can add no chunk to those that are read now.
        chunk_nos = connection.scalars(pending, {"run_id": run_id}).all()
    if not chunk_nos:
        return Settled(0, finished=bool(whole))
    return settle_dead(engine, run_id, chunk_nos, CANCELLED)
