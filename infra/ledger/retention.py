"""User text that is no longer needed: scrubbed from items and verdicts. Counts, labels and metrics stay.

A scrubbed item has neither question nor response nor earlier turns, as no accepted
item. Its kind stays, and its content
hash unless nothing may stay; the receipt of a run is over these hashes and is computed after the run's own scrubbing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import execute, fetch_all, fetch_value
from infra.ledger.intake import DAY_END, LIVE_DAY, seal_past_days
from infra.ledger.tables import (
    chunks,
    decisions,
    disagreements,
    feed_entries,
    items,
    outbox,
    reviews,
    runs,
    submissions,
    verdicts,
)
from schemas.items import Retention

_SCRUB_ITEMS: Final = """
    UPDATE items SET question = '', response = '', history = NULL,
                     content_hash = CASE WHEN :keep_hash THEN content_hash ELSE ''::bytea END
    WHERE run_id = :run_id AND (question <> '' OR response <> '' OR (content_hash <> ''::bytea AND NOT :keep_hash))
"""
_JUDGED_ONCE: Final = """
    AND seq = ANY(CAST(:seqs AS bigint[]))
    AND (SELECT repeat = 1 AND spec -> 'stages' IS NULL FROM runs WHERE id = :run_id)
"""
_OF_A_WHOLE_RUN: Final = " AND (SELECT settled = expected FROM runs WHERE id = :run_id)"
_SCRUB_EXAMPLES: Final = "UPDATE runs SET spec = spec - 'examples' WHERE id = :run_id AND settled = expected"

_SPAN: Final = 5_000
"""Items of a run that one transaction scrubs or deletes: nobody waits for its locks, and it holds no old snapshot."""
_IN_SPAN: Final = " AND seq BETWEEN :first AND :last"

# A day's run of live traffic is as old as its day, whenever it was completed.
_OLD: Final = f"""
    SELECT id FROM runs
    WHERE (state IN ('complete', 'cancelled')
           AND least(completed_at, CASE WHEN {LIVE_DAY} THEN {DAY_END} END) < now() - :age)
       OR (state = 'sealed' AND settled = expected AND {LIVE_DAY} AND {DAY_END} < now() - :age)
    ORDER BY created_at
"""  # noqa: S608 - our own
_LIVE: Final = "SELECT id FROM runs WHERE lane = 'live' ORDER BY created_at"

_SETTLED_LIVE: Final = """
    UPDATE items i SET question = '', response = '', history = NULL
    WHERE run_id = :run_id AND (question <> '' OR response <> '')
      AND (SELECT count(*) FROM verdicts v WHERE v.run_id = :run_id AND v.seq = i.seq
           AND v.settled_at < now() - :age) = (SELECT repeat FROM runs WHERE id = :run_id)
"""
_RAW: Final = "UPDATE verdicts SET raw = NULL WHERE run_id = :run_id AND raw IS NOT NULL"
_OLD_ONLY: Final = " AND settled_at < now() - :age"

_FILES: Final = """
    DELETE FROM files f WHERE created_at < now() - :age
      AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.input_file_id = f.id
                      AND b.submitted_at IS NULL AND b.failed_at IS NULL)
"""


_NOTIFIED: Final = """
    DELETE FROM outbox WHERE id IN (
        SELECT id FROM outbox WHERE state <> 'pending' AND settled_at < now() - :age LIMIT :most)
"""

_OF_A_RUN: Final = (items, verdicts, submissions, feed_entries, decisions, reviews, disagreements, outbox)
"""Tables with rows of a run; its chunks go with it."""


class Purged(NamedTuple):
    """Runs and items that a purge changed."""

    runs: int
    items: int


def scrub_settled(connection: sa.Connection, run_id: str, seqs: Sequence[int], retention: Retention) -> None:
    """Scrub items that have just settled, where each of them is judged once only and by no later stage."""
    if not retention.scrubs:
        return
    values = {"run_id": run_id, "seqs": list(seqs), "keep_hash": retention is Retention.HASH}
    connection.execute(sa.text(_SCRUB_ITEMS + _JUDGED_ONCE), values)


def scrub_run(engine: sa.Engine, run_id: str, retention: Retention) -> int:
    """Scrub every item of a run whose items have all settled; returns how many still had their text."""
    if not retention.scrubs:
        return 0
    scrubbed = 0
    for span in _spans(engine, run_id):
        values = {**span, "keep_hash": retention is Retention.HASH}
        scrubbed += execute(engine, sa.text(_SCRUB_ITEMS + _IN_SPAN + _OF_A_WHOLE_RUN), values)
        execute(engine, sa.text(_RAW + _IN_SPAN), span)
    execute(engine, sa.text(_SCRUB_EXAMPLES), {"run_id": run_id})
    return scrubbed


def purge(engine: sa.Engine, older_than: timedelta, *, delete: bool = False) -> Purged:
    """Scrub the texts of runs that ended so long ago, and of live items that settled so long ago.

    Uploaded files of that age go whole, unless a batch still needs one, and webhook messages that were settled so
    long ago leave the outbox. With `delete`, such runs go altogether, verdicts and reports included. Hashes stay
    where the items stay, and so does the receipt. A purge that is broken off is gone on with by the next.
    """
    seal_past_days(engine)
    old = old_runs(engine, older_than)
    gone = sum(_delete_run(engine, run_id) if delete else scrub_run(engine, run_id, Retention.HASH) for run_id in old)
    for row in fetch_all(engine, sa.text(_LIVE)):
        if row.id not in old:
            gone += _scrub_live(engine, row.id, older_than)
    execute(engine, sa.text(_FILES), {"age": older_than})
    while execute(engine, sa.text(_NOTIFIED), {"age": older_than, "most": _SPAN}):
        pass
    return Purged(len(old), gone)


def old_runs(engine: sa.Engine, older_than: timedelta) -> list[str]:
    """The ids of the ended runs that a purge would take now; nothing is changed."""
    return [row.id for row in fetch_all(engine, sa.text(_OLD), {"age": older_than})]


def _scrub_live(engine: sa.Engine, run_id: str, older_than: timedelta) -> int:
    """Scrub what settled so long ago in a run of live traffic that may still go on."""
    scrubbed = 0
    for span in _spans(engine, run_id):
        scrubbed += execute(engine, sa.text(_SETTLED_LIVE + _IN_SPAN), {**span, "age": older_than})
        execute(engine, sa.text(_RAW + _IN_SPAN + _OLD_ONLY), {**span, "age": older_than})
    return scrubbed


def _delete_run(engine: sa.Engine, run_id: str) -> int:
    """Delete a run with all that it has; returns how many items it had.

    Its chunks go first: a verdict that is delivered again finds none, and writes nothing. The run goes last: until then
    a purge finds it.
    """
    items_gone = 0
    last_chunk = fetch_value(engine, sa.select(sa.func.max(chunks.c.chunk_no)).where(chunks.c.run_id == run_id))
    for first in range(0, (last_chunk or 0) + 1, _SPAN):
        some = chunks.c.chunk_no.between(first, first + _SPAN - 1)
        execute(engine, sa.delete(chunks).where(chunks.c.run_id == run_id, some))
    for span in _spans(engine, run_id):
        with engine.begin() as connection:
            for table in _OF_A_RUN:
                within = sa.and_(table.c.run_id == run_id, table.c.seq.between(span["first"], span["last"]))
                went = connection.execute(sa.delete(table).where(within)).rowcount
                items_gone += went if table is items else 0
    execute(engine, sa.delete(runs).where(runs.c.id == run_id))
    return items_gone


def _spans(engine: sa.Engine, run_id: str) -> Iterator[dict[str, Any]]:
    """The run's items in spans that one transaction can deal with, as values of statements."""
    accepted = fetch_value(engine, sa.select(runs.c.accepted).where(runs.c.id == run_id)) or 0
    for first in range(0, accepted, _SPAN):
        yield {"run_id": run_id, "first": first, "last": first + _SPAN - 1}
