"""User text that is no longer needed: scrubbed from items and verdicts. Counts, labels and metrics stay.

A scrubbed item has neither question nor response, which no accepted item can have. Its content hash stays unless
nothing may stay; the receipt of a run is over these hashes and is computed after the run's own scrubbing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import fetch_all
from infra.ledger.tables import (
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
    UPDATE items SET question = '', response = '',
                     content_hash = CASE WHEN :keep_hash THEN content_hash ELSE ''::bytea END
    WHERE run_id = :run_id AND (response <> '' OR (content_hash <> ''::bytea AND NOT :keep_hash))
"""
_JUDGED_ONCE: Final = """
    AND seq = ANY(CAST(:seqs AS bigint[]))
    AND (SELECT repeat = 1 AND spec -> 'stages' IS NULL FROM runs WHERE id = :run_id)
"""
_OF_A_WHOLE_RUN: Final = " AND (SELECT settled = expected FROM runs WHERE id = :run_id)"
_SCRUB_EXAMPLES: Final = "UPDATE runs SET spec = spec - 'examples' WHERE id = :run_id AND settled = expected"

_ENDED: Final = """
    SELECT id FROM runs WHERE state IN ('complete', 'cancelled') AND completed_at < now() - :age
    ORDER BY completed_at
"""

_SETTLED_LIVE: Final = """
    UPDATE items i SET question = '', response = '' FROM runs r
    WHERE r.id = i.run_id AND r.lane = 'live' AND r.state = 'open' AND i.response <> ''
      AND (SELECT count(*) FROM verdicts v WHERE v.run_id = i.run_id AND v.seq = i.seq
           AND v.settled_at < now() - :age) = r.repeat
"""

_RAW_OF_LIVE: Final = """
    UPDATE verdicts v SET raw = NULL FROM runs r
    WHERE r.id = v.run_id AND r.lane = 'live' AND v.raw IS NOT NULL AND v.settled_at < now() - :age
"""

_FILES: Final = """
    DELETE FROM files f WHERE created_at < now() - :age
      AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.input_file_id = f.id
                      AND b.submitted_at IS NULL AND b.failed_at IS NULL)
"""


_NOTIFIED: Final = "DELETE FROM outbox WHERE state <> 'pending' AND settled_at < now() - :age"

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
    values = {"run_id": run_id, "keep_hash": retention is Retention.HASH}
    with engine.begin() as connection:
        scrubbed = connection.execute(sa.text(_SCRUB_ITEMS + _OF_A_WHOLE_RUN), values).rowcount
        connection.execute(
            sa.text("UPDATE verdicts SET raw = NULL WHERE run_id = :run_id AND raw IS NOT NULL"), {"run_id": run_id}
        )
        connection.execute(sa.text(_SCRUB_EXAMPLES), {"run_id": run_id})
    return scrubbed


def purge(engine: sa.Engine, older_than: timedelta, *, delete: bool = False) -> Purged:
    """Scrub the texts of runs that ended so long ago, and of live items that settled so long ago.

    Uploaded files of that age go whole, unless a batch still needs one, and webhook messages that were settled so
    long ago leave the outbox. With `delete`, such runs go altogether, verdicts and reports included. Hashes stay
    where the items stay, and so does the receipt.
    """
    scrubbed = 0
    ended = [row.id for row in fetch_all(engine, sa.text(_ENDED), {"age": older_than})]
    for run_id in ended:
        if not delete:
            scrubbed += scrub_run(engine, run_id, Retention.HASH)
            continue
        with engine.begin() as connection:
            of_run = [sa.delete(table).where(table.c.run_id == run_id) for table in _OF_A_RUN]
            gone = [connection.execute(statement).rowcount for statement in of_run]
            connection.execute(sa.delete(runs).where(runs.c.id == run_id))
        scrubbed += gone[0]
    with engine.begin() as connection:
        scrubbed += connection.execute(sa.text(_SETTLED_LIVE), {"age": older_than}).rowcount
        connection.execute(sa.text(_RAW_OF_LIVE), {"age": older_than})
        connection.execute(sa.text(_FILES), {"age": older_than})
        connection.execute(sa.text(_NOTIFIED), {"age": older_than})
    return Purged(len(ended), scrubbed)
