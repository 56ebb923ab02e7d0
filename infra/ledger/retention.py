"""User text that is no longer needed: scrubbed from items and verdicts. Counts, labels and metrics stay.

A scrubbed item has neither question nor response nor earlier turns, as no accepted
item. Its kind stays, and its content
hash unless nothing may stay; the receipt of a run is over these hashes and is computed after the run's own scrubbing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from psycopg.errors import InsufficientPrivilege

from infra.ledger import months
from infra.ledger.engine import execute, fetch_all, fetch_value
from infra.ledger.faults import is_passing
from infra.ledger.intake import DAY_END, LIVE_DAY, seal_past_days
from infra.ledger.months import Month
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
from infra.log import get_logger
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
"""Tables with rows of a run's items; its chunks go first."""

log = get_logger(__name__)


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
    long ago leave the outbox. With `delete`, such runs go altogether, verdicts and reports included; a past month that
    has no other runs goes as a whole. Hashes stay where the items stay, and so does the receipt. A purge that is
    broken off is gone on with by the next.
    """
    seal_past_days(engine)
    old = old_runs(engine, older_than)
    gone = _delete_runs(engine, old) if delete else sum(scrub_run(engine, run_id, Retention.HASH) for run_id in old)
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


def _delete_runs(engine: sa.Engine, old: Sequence[str]) -> int:
    """Delete runs with all that they have, by the month where that can be; returns how many items they had.

    Their chunks go first: a verdict that is delivered again finds none, and writes nothing. A run itself goes last:
    until then a purge finds it.
    """
    for run_id in old:
        _delete_chunks(engine, run_id)
    deleted = 0
    for month, of_month in _by_month(old).items():
        dropped = month is not None and _drop(engine, month, of_month)
        for run_id in of_month:
            deleted += _delete_run(engine, run_id, dropped=dropped)
    return deleted


def _by_month(run_ids: Sequence[str]) -> dict[Month | None, list[str]]:
    by_month: dict[Month | None, list[str]] = defaultdict(list)
    for run_id in run_ids:
        by_month[Month.of(run_id)].append(run_id)
    return by_month


def _drop(engine: sa.Engine, month: Month, runs: Sequence[str]) -> bool:
    """Drop a month; False where it has other runs, its tables are another role's, or somebody keeps reading them."""
    try:
        with engine.begin() as connection:
            return months.drop(connection, month, runs)
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            log.warning("month_not_ours", month=month.prefix)
        elif is_passing(error):
            log.warning("month_in_use", month=month.prefix)
        else:
            raise
        return False


def _delete_chunks(engine: sa.Engine, run_id: str) -> None:
    last = fetch_value(engine, sa.select(sa.func.max(chunks.c.chunk_no)).where(chunks.c.run_id == run_id))
    for first in range(0, (last or 0) + 1, _SPAN):
        some = chunks.c.chunk_no.between(first, first + _SPAN - 1)
        execute(engine, sa.delete(chunks).where(chunks.c.run_id == run_id, some))


def _delete_run(engine: sa.Engine, run_id: str, *, dropped: bool) -> int:
    """Delete a run without chunks; returns how many items it had. `dropped`: those of its month are gone."""
    accepted = fetch_value(engine, sa.select(runs.c.accepted).where(runs.c.id == run_id)) or 0
    tables = [table for table in _OF_A_RUN if not (dropped and table.name in months.MONTHLY)]
    tables = [table for table in tables if _has_rows(engine, table, run_id)]
    for span in _spans(engine, run_id) if tables else ():
        with engine.begin() as connection:
            for table in tables:
                within = sa.and_(table.c.run_id == run_id, table.c.seq.between(span["first"], span["last"]))
                connection.execute(sa.delete(table).where(within))
    execute(engine, sa.delete(runs).where(runs.c.id == run_id))
    return accepted


def _has_rows(engine: sa.Engine, table: sa.Table, run_id: str) -> bool:
    return bool(fetch_value(engine, sa.select(sa.exists().where(table.c.run_id == run_id))))


def _spans(engine: sa.Engine, run_id: str) -> Iterator[dict[str, Any]]:
    """The run's items in spans that one transaction can deal with, as values of statements."""
    accepted = fetch_value(engine, sa.select(runs.c.accepted).where(runs.c.id == run_id)) or 0
    for first in range(0, accepted, _SPAN):
        yield {"run_id": run_id, "first": first, "last": first + _SPAN - 1}
