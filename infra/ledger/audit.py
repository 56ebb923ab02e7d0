"""The books of a run, checked from the rows up: nothing lost, nothing doubled, nothing altered. Changes nothing.

Every check counts for itself and trusts no counter that another statement keeps.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import Row, fetch_all, take_long
from infra.ledger.items import dialogue_from
from infra.ledger.paging import pages
from infra.ledger.runs import run_status, stored_report
from infra.ledger.stats import cached_count
from infra.ledger.tables import chunks
from schemas.items import Item
from schemas.runs import RunState


class Check(NamedTuple):
    """One thing that must hold. `found` words the counts; `breaches` is 0 where it holds."""

    name: str
    breaches: int
    found: str


class Audit(NamedTuple):
    """The outcome of all checks on one run, with the receipt and the duplicate work."""

    run_id: str
    checks: tuple[Check, ...]
    receipt: str
    wasted_items: int
    reattempted_chunks: int
    cached_items: int

    @property
    def sound(self) -> bool:
        """True where every check holds."""
        return not any(check.breaches for check in self.checks)


_COUNTS: Final = {
    "items are numbered without a gap": """
        SELECT abs(r.accepted - count(i.seq)) + coalesce(max(i.seq) + 1 - count(i.seq), 0) AS breaches,
               count(i.seq) || ' items, ' || r.accepted || ' accepted' AS found
        FROM runs r LEFT JOIN items i ON i.run_id = r.id WHERE r.id = :run_id GROUP BY r.accepted
        """,
    "item ids are unique": """
        SELECT count(*) - count(DISTINCT item_id) AS breaches, count(DISTINCT item_id) || ' distinct ids' AS found
        FROM items WHERE run_id = :run_id
        """,
    "every item of an ended run has its verdict": """
        SELECT CASE WHEN r.state IN ('complete', 'cancelled') THEN pending ELSE 0 END AS breaches,
               pending || ' without a verdict' AS found
        FROM runs r, LATERAL (
            SELECT count(*) AS pending FROM items i CROSS JOIN generate_series(0, r.repeat - 1) AS n(iteration)
            LEFT JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq AND v.iteration = n.iteration
            WHERE i.run_id = r.id AND v.seq IS NULL) AS missing
        WHERE r.id = :run_id
        """,
    "no item has two verdicts": """
        SELECT coalesce(sum(n - 1), 0) AS breaches, count(*) || ' judged' AS found
        FROM (SELECT count(*) AS n FROM verdicts WHERE run_id = :run_id GROUP BY seq, iteration) AS judged
        """,
    "every verdict belongs to an item of the run": """
        SELECT count(*) FILTER (WHERE i.seq IS NULL OR v.iteration NOT BETWEEN 0 AND r.repeat - 1) AS breaches,
               count(*) || ' verdicts' AS found
        FROM verdicts v JOIN runs r ON r.id = v.run_id LEFT JOIN items i ON i.run_id = v.run_id AND i.seq = v.seq
        WHERE v.run_id = :run_id
        """,
    "the run's counters equal its verdicts": """
        SELECT abs(r.settled - count(v.seq))
               + abs(r.scored - count(*) FILTER (WHERE v.outcome = 'scored'))
               + abs(r.unparseable - count(*) FILTER (WHERE v.outcome = 'unparseable'))
               + abs(r.dead - count(*) FILTER (WHERE v.outcome = 'dead')) AS breaches,
               r.settled || ' settled, ' || count(v.seq) || ' verdicts' AS found
        FROM runs r LEFT JOIN verdicts v ON v.run_id = r.id WHERE r.id = :run_id GROUP BY r.id
        """,
    "accepted = settled + pending, and sealed counts hold": """
        SELECT (settled > accepted * repeat)::int
               + (expected IS DISTINCT FROM accepted * repeat AND state <> 'open')::int
               + (state IN ('complete', 'cancelled', 'finalizing') AND settled <> accepted * repeat)::int AS breaches,
               accepted || ' x ' || repeat || ' = ' || settled || ' + ' || accepted * repeat - settled AS found
        FROM runs WHERE id = :run_id
        """,
    "chunks cover every item once per iteration": """
        SELECT abs(r.accepted * r.repeat - coalesce(sum(c.size), 0)) + coalesce(sum((c.overlap)::int), 0) AS breaches,
               count(c.chunk_no) || ' chunks, ' || coalesce(sum(c.size), 0) || ' places' AS found
        FROM runs r LEFT JOIN (
            SELECT run_id, chunk_no, size, first_seq < lag(first_seq + size, 1, 0::bigint)
                   OVER (PARTITION BY iteration ORDER BY first_seq) AS overlap
            FROM chunks WHERE run_id = :run_id) AS c ON c.run_id = r.id
        WHERE r.id = :run_id GROUP BY r.id
        """,
    "chunks settled what their verdicts say": """
        SELECT coalesce(sum(abs(c.settled - coalesce(v.n, 0))), 0) AS breaches,
               coalesce(sum(v.n), 0) || ' settled' AS found
        FROM chunks c LEFT JOIN LATERAL (
            SELECT count(*) AS n FROM verdicts v WHERE v.run_id = c.run_id AND v.iteration = c.iteration
            AND v.seq BETWEEN c.first_seq AND c.first_seq + c.size - 1) AS v ON true
        WHERE c.run_id = :run_id
        """,
    "chunks were judged as they were committed": """
        SELECT count(*) FILTER (WHERE judged_nonce <> coalesce(nonce, '')) AS breaches,
               count(*) || ' judged' || CASE WHEN bool_or(judged_nonce IS NULL AND nonce IS NOT NULL)
                   THEN ', ' || count(*) FILTER (WHERE judged_nonce IS NULL AND nonce IS NOT NULL)
                        || ' by workers that name no commit' ELSE '' END AS found
        FROM chunks WHERE run_id = :run_id AND worker IS NOT NULL
        """,
    "no item lost its text before its verdict": """
        SELECT count(*) AS breaches, count(*) || ' without text and verdict' AS found
        FROM items i JOIN runs r ON r.id = i.run_id
        WHERE i.run_id = :run_id AND i.question = '' AND i.response = ''
          AND (SELECT count(*) FROM verdicts v WHERE v.run_id = i.run_id AND v.seq = i.seq) < r.repeat
        """,
    "one fingerprint judged a bulk run": """
        SELECT count(*) FILTER (WHERE v.outcome <> 'dead' AND v.fingerprint IS DISTINCT FROM r.fingerprint) AS breaches,
               count(DISTINCT v.fingerprint) || ' fingerprints' AS found
        FROM verdicts v JOIN runs r ON r.id = v.run_id WHERE v.run_id = :run_id AND r.lane = 'bulk'
        """,
    "only a run that allowed it was answered from the cache": """
        SELECT CASE WHEN r.repeat = 1 AND (r.lane = 'live' OR r.spec @> '{"cache": true}') THEN 0 ELSE cached END
               AS breaches, cached || ' from the cache' AS found
        FROM runs r, LATERAL (SELECT count(*) AS cached FROM verdicts WHERE run_id = r.id AND cached) AS answered
        WHERE r.id = :run_id
        """,
}


def audit(engine: sa.Engine, run_id: str) -> Audit:
    """Check a run's books; a run that is still going on may have pending items, but no other breach.

    Raises:
        RunNotFoundError: there is no such run.
    """
    status = run_status(engine, run_id)
    # All checks look at one snapshot: a run that is still going on must not be caught between two of them.
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        take_long(connection, whole_run=True)
        checks = []
        for name, statement in _COUNTS.items():
            row = connection.execute(sa.text(statement), {"run_id": status.id}).one_or_none()
            checks.append(Check(name, int(row.breaches), row.found) if row else Check(name, 0, "nothing yet"))
    altered, scrubbed, fresh = _recompute(engine, status.id)
    found = f"{altered} differ from their hash" + (f", {scrubbed} scrubbed" if scrubbed else "")
    checks.append(Check("no item's content was altered", altered, found))
    stored = stored_report(engine, status.id)
    if status.state in (RunState.COMPLETE, RunState.CANCELLED):
        checks.append(_compare("the receipt is the one the run ended with", stored.receipt if stored else "", fresh))
        checks.append(_compare("the report counts what the run counts", stored.counts if stored else "", status.counts))
    wasted, again = sa.func.sum(chunks.c.wasted), sa.func.count().filter(chunks.c.attempt > 1)
    duplicates = sa.select(sa.func.coalesce(wasted, 0), again).where(chunks.c.run_id == status.id)
    ((wasted_items, reattempted),) = fetch_all(engine, duplicates)
    return Audit(status.id, tuple(checks), fresh, wasted_items, reattempted, cached_count(engine, status.id))


class Receipt:
    """SHA-256 over (item id, content hash, iteration, outcome, label) of every verdict, in item order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, row: Row) -> None:
        """Take the next verdict, with its item."""
        parts = (row.item_id, bytes(row.content_hash).hex(), str(row.iteration), row.outcome, row.label or "")
        self._digest.update("\x1f".join(parts).encode() + b"\n")

    def hexdigest(self) -> str:
        """The receipt over all verdicts so far."""
        return self._digest.hexdigest()


def _compare(name: str, stored: object, found: object) -> Check:
    return Check(name, int(stored != found), "equal" if stored == found else "differs")


_CONTENTS: Final = sa.text(
    """
    SELECT i.item_id, i.question, i.response, i.kind, i.history, i.content_hash, v.iteration, v.outcome, v.label
    FROM verdicts v JOIN items i USING (run_id, seq)
    WHERE v.run_id = :run_id AND v.seq BETWEEN :first AND :last AND i.seq BETWEEN :first AND :last
    ORDER BY v.seq, v.iteration
    """
)


def _recompute(engine: sa.Engine, run_id: str) -> tuple[int, int, str]:
    """Verdicts whose items differ from their content hash, those whose texts were scrubbed, and the receipt."""
    receipt = Receipt()
    altered = scrubbed = 0
    for row in pages(engine, _CONTENTS, run_id, page_rows=512):
        item = Item.model_construct(id=row.item_id, **dialogue_from(row)._asdict())
        if not (row.question or row.response):
            scrubbed += 1  # no item is accepted without a text
        elif item.content_hash != bytes(row.content_hash):
            altered += 1
        receipt.add(row)
    return altered, scrubbed, receipt.hexdigest()
