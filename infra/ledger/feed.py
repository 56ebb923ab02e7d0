"""The feed of verdicts: settled items of a tenant's submissions, numbered so that no reader ever skips one.

A number is given under the lock on the tenant's row, which is kept until the commit: the transaction with the next
number commits later. So the numbers become visible in their order and without a gap, which neither a clock nor a
sequence promises, and reading on from the last number seen misses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import Row, fetch_all, named, stream
from infra.ledger.items import verdict_from
from schemas.policy import Action
from schemas.verdicts import Verdict

_APPEND: Final = sa.text(
    """
    WITH mine AS (
        SELECT s.tenant, s.run_id, s.seq, row_number() OVER (PARTITION BY s.tenant ORDER BY s.run_id, s.seq) AS place
        FROM unnest(CAST(:run_ids AS text[]), CAST(:seqs AS bigint[])) AS w(run_id, seq)
        -- OFFSET keeps these a question per item: as joins, all rows of an unknown run would be read each time.
        CROSS JOIN LATERAL (SELECT * FROM submissions WHERE run_id = w.run_id AND seq = w.seq OFFSET 0) AS s
        WHERE NOT EXISTS (SELECT 1 FROM feed_entries f WHERE f.run_id = s.run_id AND f.seq = s.seq OFFSET 0)
    ), counted AS (
        SELECT tenant, count(*) AS entries FROM mine GROUP BY tenant
    ), numbered AS (
        INSERT INTO feeds (tenant, last_n) SELECT tenant, entries FROM counted ORDER BY tenant
        ON CONFLICT (tenant) DO UPDATE SET last_n = feeds.last_n + excluded.last_n
        RETURNING tenant, last_n
    )
    INSERT INTO feed_entries (tenant, n, run_id, seq)
    SELECT tenant, last_n - entries + place, run_id, seq
    FROM mine JOIN counted USING (tenant) JOIN numbered USING (tenant)
    """
)

_ITEM_COLUMNS: Final = """
    s.run_id, s.seq, s.tenant, s.custom_id, s.policy, s.metadata, s.created_at, r.guard,
    v.outcome, v.label, v.p_unsafe, v.label_mass, v.categories, v.reason, v.raw, v.prompt_tokens, v.windows, v.cached,
    v.categories_by, v.fingerprint, v.settled_at, coalesce(h.action, d.action) AS action, d.policy AS decided_by,
    d.policy_version, h.action IS NOT NULL AS by_human, d.reason AS decision_reason
"""
_ITEM_TABLES: Final = """
    submissions s JOIN runs r ON r.id = s.run_id
    LEFT JOIN verdicts v ON v.run_id = s.run_id AND v.seq = s.seq AND v.iteration = 0
    LEFT JOIN decisions d ON d.run_id = s.run_id AND d.seq = s.seq AND d.iteration = 0 AND d.superseded_at IS NULL
    LEFT JOIN LATERAL (
        SELECT w.action FROM reviews w WHERE w.run_id = s.run_id AND w.seq = s.seq ORDER BY w.id DESC LIMIT 1
    ) AS h ON true
"""

_PAGE: Final = sa.text(
    f"""
    SELECT f.n, {_ITEM_COLUMNS}
    FROM (SELECT n, run_id, seq FROM feed_entries WHERE tenant = :tenant AND n > :after ORDER BY n LIMIT :limit) AS f
    JOIN {_ITEM_TABLES} ON s.run_id = f.run_id AND s.seq = f.seq ORDER BY f.n
    """  # noqa: S608 - no user text in it
)

_ITEMS: Final = sa.text(
    f"SELECT {_ITEM_COLUMNS} FROM {_ITEM_TABLES} WHERE s.run_id = :run_id AND s.seq = ANY(CAST(:seqs AS bigint[]))"  # noqa: S608
)


_OF_BATCH: Final = sa.text(
    f"""
    SELECT {_ITEM_COLUMNS} FROM {_ITEM_TABLES} JOIN items i ON i.run_id = s.run_id AND i.seq = s.seq
    WHERE s.run_id = :run_id ORDER BY CAST(string_to_array(i.item_id, '.') AS integer[])
    """  # noqa: S608 - no user text in it
)


class Decided(NamedTuple):
    """The action that holds now: a human's before a policy's. `policy` is the one that decided, if any did."""

    action: Action
    by_human: bool
    policy: str | None
    policy_version: int | None
    reason: str | None


class SubmittedItem(NamedTuple):
    """An item as its submitter knows it; `verdict` and what follows is None while it is pending.

    `decided` is None as well where no policy applies and no human has decided.
    """

    run_id: str
    seq: int
    tenant: str
    custom_id: str | None
    policy: str | None
    metadata: dict[str, Any] | None
    created_at: datetime
    guard: str
    verdict: Verdict | None
    fingerprint: str | None
    settled_at: datetime | None
    decided: Decided | None


def append_to_feeds(connection: sa.Connection, places: Iterable[tuple[str, int]]) -> None:
    """Number those of the items (run, number) that were submitted with a tenant's name, each once.

    The last statement of a settling transaction, and one for all its runs: the tenants' rows are locked in one order.
    """
    ordered = sorted(set(places))
    if ordered:
        values = {"run_ids": [run_id for run_id, _ in ordered], "seqs": [seq for _, seq in ordered]}
        connection.execute(_APPEND, values)


def feed_page(engine: sa.Engine, tenant: str, *, after: int, limit: int) -> list[tuple[int, SubmittedItem]]:
    """A tenant's next settled items behind a number, each with its own number, ascending."""
    values = {"tenant": tenant, "after": after, "limit": limit}
    return [(row.n, _item(row)) for row in fetch_all(engine, _PAGE, values)]


def submitted_items(engine: sa.Engine, run_id: str, seqs: Sequence[int]) -> dict[int, SubmittedItem]:
    """Those of a run's items that were submitted with a tenant's name, by number."""
    return {row.seq: _item(row) for row in fetch_all(engine, _ITEMS, {"run_id": run_id, "seqs": list(seqs)})}


def batch_items(engine: sa.Engine, run_id: str) -> Iterator[SubmittedItem]:
    """All items of a batch's run, streamed in the order of its file; their ids are LINE or LINE.TEXT."""
    yield from map(_item, stream(engine, _OF_BATCH, {"run_id": run_id}, whole_run=True))


def _item(row: Row) -> SubmittedItem:
    decided = None
    if row.action:
        decided = Decided(Action(row.action), row.by_human, row.decided_by, row.policy_version, row.decision_reason)
    verdict = verdict_from(row) if row.outcome else None
    return SubmittedItem(**named(SubmittedItem, row), verdict=verdict, decided=decided)
