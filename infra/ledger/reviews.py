"""The review queue: items that wait for a human, and what humans decided."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import ItemNotFoundError, UsageError
from infra.ledger.engine import Row, autocommit, fetch_all, named, take_long
from infra.ledger.items import SHOWN_QUESTION, verdict_from
from infra.ledger.tables import decisions, disagreements, reviews
from infra.ledger.webhooks import WebhookMessage, exported_metadata, post, withdraw_contrary
from schemas.items import Label, submitted_name
from schemas.policy import Action, surface_of
from schemas.verdicts import Outcome
from schemas.webhooks import Event, HumanReview


class Why(StrEnum):
    """The reason for an item's place in the review queue."""

    REVIEW = "review"
    DISAGREEMENT = "disagreement"
    AUDIT = "audit"


class Judgement(NamedTuple):
    """One guard's verdict on an item, without its own text."""

    guard: str
    outcome: Outcome
    label: Label | None
    p_unsafe: float | None
    categories: tuple[str, ...]
    fingerprint: str | None


class ReviewItem(NamedTuple):
    """An item that waits for a human, with the texts (empty where retention scrubbed them).

    `judgements`: the run's own verdict first, then those of its child runs that disagree.
    """

    run_id: str
    seq: int
    item_id: str
    tenant: str
    custom_id: str | None
    surface: str
    why: Why
    action: Action | None
    policy: str | None
    policy_version: int | None
    reason: str | None
    question: str
    response: str
    submitted_at: datetime
    judgements: tuple[Judgement, ...]

    @property
    def name(self) -> str:
        """The item's name over HTTP."""
        return submitted_name(self.run_id, self.seq)


class Review(NamedTuple):
    """A human's decision on an item."""

    id: int
    run_id: str
    seq: int
    label: Label
    action: Action
    moderator: str
    note: str
    decided_at: datetime


AUDIT_SHARE: Final = 0.01
"""Share of the items that nothing else puts into the queue that is looked at all the same."""
_AUDIT_PLACES: Final = 10
"""One place of so many in a page of the queue is the audit sample's, however long the rest is."""
_AUDIT_LOOK_BACK: Final = 20_000
"""The audit sample is drawn from a tenant's newest items, so many at most."""

_Key = tuple[str, int]

_UNREVIEWED: Final = "NOT EXISTS (SELECT 1 FROM reviews h WHERE h.run_id = s.run_id AND h.seq = s.seq)"
_OF_TENANT: Final = "(CAST(:tenant AS text) IS NULL OR s.tenant = :tenant)"

_WAITING: Final = sa.text(
    f"""
    SELECT d.run_id, d.seq FROM decisions d JOIN submissions s USING (run_id, seq)
    WHERE d.superseded_at IS NULL AND d.reviewed_at IS NULL AND d.action = 'review' AND d.iteration = 0
      AND {_OF_TENANT} AND {_UNREVIEWED}
    ORDER BY d.decided_at, d.run_id, d.seq LIMIT :limit
    """  # noqa: S608 - no user text in it
)
_DISPUTED: Final = sa.text(
    f"""
    SELECT g.run_id, g.seq FROM disagreements g JOIN submissions s USING (run_id, seq)
    WHERE g.reviewed_at IS NULL AND {_OF_TENANT} AND {_UNREVIEWED}
    GROUP BY g.run_id, g.seq ORDER BY min(g.noted_at), g.run_id, g.seq LIMIT :limit
    """  # noqa: S608
)
_AUDITED: Final = sa.text(
    f"""
    SELECT s.run_id, s.seq FROM (
        SELECT run_id, seq, tenant FROM submissions s WHERE {_OF_TENANT} ORDER BY created_at DESC LIMIT :look_back
    ) AS s
    JOIN verdicts v ON v.run_id = s.run_id AND v.seq = s.seq AND v.iteration = 0
    WHERE (hashtextextended(s.run_id || '/' || s.seq, :seed) & 1048575) < :share * 1048576 AND {_UNREVIEWED}
    ORDER BY hashtextextended(s.run_id || '/' || s.seq, :seed) LIMIT :limit
    """  # noqa: S608
)


def review_queue(
    engine: sa.Engine, tenant: str | None, limit: int, *, seed: int = 0, audit_share: float = AUDIT_SHARE
) -> list[ReviewItem]:
    """Items that wait for a human: to review, the longest waiting first; then disputed ones; then the audit sample.

    Items that any human has decided are left out. `tenant` None: of all tenants. The sample is the same for the same
    `seed` and keeps one place in ten, so that a long queue does not crowd it out.
    """
    scope = {"tenant": tenant, "limit": limit}
    sample = {**scope, "seed": seed, "share": audit_share, "look_back": _AUDIT_LOOK_BACK}
    with autocommit(engine) as connection:
        found: dict[_Key, Why] = {}
        for why, statement in ((Why.REVIEW, _WAITING), (Why.DISAGREEMENT, _DISPUTED)):
            for row in connection.execute(statement, scope):
                found.setdefault((row.run_id, row.seq), why)
        audited = [(row.run_id, row.seq) for row in connection.execute(_AUDITED, sample)]
        audit = [key for key in audited if key not in found]
        reserved = min(len(audit), limit // _AUDIT_PLACES)
        queue = dict(list(found.items())[: limit - reserved])
        queue |= dict.fromkeys(audit[: limit - len(queue)], Why.AUDIT)
        return _with_texts(connection, queue)


def review_item(engine: sa.Engine, run_id: str, seq: int) -> ReviewItem | None:
    """One item as the queue shows it, whether it waits or not (`why` is then audit); None where there is none."""
    with autocommit(engine) as connection:
        found = _with_texts(connection, {(run_id, seq): Why.AUDIT})
    return found[0] if found else None


_SHOW: Final = sa.text(
    f"""
    SELECT s.run_id, s.seq, s.tenant, s.custom_id, s.metadata, s.created_at, i.item_id, {SHOWN_QUESTION}, i.response,
           i.source, d.action, d.policy, d.policy_version, d.reason
    FROM unnest(CAST(:run_ids AS text[]), CAST(:seqs AS bigint[])) AS wanted(run_id, seq)
    JOIN submissions s USING (run_id, seq) JOIN items i USING (run_id, seq)
    LEFT JOIN decisions d ON d.run_id = s.run_id AND d.seq = s.seq AND d.iteration = 0 AND d.superseded_at IS NULL
    """  # noqa: S608 - our own columns
)
_JUDGED: Final = sa.text(
    """
    WITH wanted AS (
        SELECT * FROM unnest(CAST(:run_ids AS text[]), CAST(:seqs AS bigint[])) AS w(run_id, seq)
    ), places AS (
        SELECT run_id, seq, run_id AS by_run, seq AS by_seq, 0 AS rank FROM wanted
        UNION ALL
        SELECT g.run_id, g.seq, g.child_run_id, g.child_seq, 1 FROM disagreements g JOIN wanted USING (run_id, seq)
    )
    SELECT p.run_id, p.seq, r.guard, v.outcome, v.label, v.p_unsafe, v.categories, v.fingerprint
    FROM places p JOIN runs r ON r.id = p.by_run
    JOIN verdicts v ON v.run_id = p.by_run AND v.seq = p.by_seq AND v.iteration = 0
    ORDER BY p.rank, r.created_at
    """
)


def _with_texts(connection: sa.Connection, queue: Mapping[_Key, Why]) -> list[ReviewItem]:
    places = {"run_ids": [run_id for run_id, _ in queue], "seqs": [seq for _, seq in queue]}
    rows = {(row.run_id, row.seq): row for row in connection.execute(_SHOW, places)}
    judgements: dict[_Key, list[Judgement]] = {key: [] for key in queue}
    for row in connection.execute(_JUDGED, places):
        verdict = verdict_from(row)
        said = {"outcome": verdict.outcome, "label": verdict.label, "categories": verdict.categories}
        judgements[row.run_id, row.seq].append(Judgement(**{**named(Judgement, row), **said}))
    return [
        ReviewItem(
            **{**named(ReviewItem, row), "action": Action(row.action) if row.action else None},
            surface=surface_of(exported_metadata(row.metadata), row.source),
            why=queue[key],
            submitted_at=row.created_at,
            judgements=tuple(judgements[key]),
        )
        for key, row in ((key, rows[key]) for key in queue if key in rows)
    ]


# A settlement locks its chunk first and writes to items later, so the chunk comes first here as well.
_LOCK_PENDING: Final = sa.text(
    """
    SELECT FROM chunks
    WHERE run_id = :run_id AND settled < size AND :seq BETWEEN first_seq AND first_seq + size - 1
    ORDER BY chunk_no FOR UPDATE
    """
)
_LOCK: Final = sa.text(
    """
    SELECT s.tenant, s.custom_id, s.callback_url, s.metadata
    FROM items i JOIN submissions s USING (run_id, seq) WHERE i.run_id = :run_id AND i.seq = :seq FOR UPDATE OF i
    """
)


def decide(
    engine: sa.Engine,
    run_id: str,
    seq: int,
    *,
    label: Label,
    moderator: str,
    action: Action | None = None,
    note: str = "",
    tenant: str | None = None,
) -> Review:
    """Store what a human decided and notify the platform, in one transaction; the newest decision on an item counts.

    Without an `action`, safe passes and unsafe is blocked. The same decision by the same moderator again (a double
    press, a repeated request) is stored once. With `tenant`, items of other tenants do not exist.

    Raises:
        ItemNotFoundError: no such item came through the gateway.
        UsageError: the action is no decision (review).
    """
    action = action or (Action.PASS if label is Label.SAFE else Action.BLOCK)
    if action is Action.REVIEW:
        raise UsageError("a human's decision is pass or block")
    of_item = sa.and_(reviews.c.run_id == run_id, reviews.c.seq == seq)
    by_moderator = sa.select(reviews).where(of_item, reviews.c.moderator == moderator)
    said = {"label": label.value, "action": action.value, "note": note}
    with engine.begin() as connection:
        connection.execute(_LOCK_PENDING, {"run_id": run_id, "seq": seq})
        # The lock makes a double press wait for the first.
        item = connection.execute(_LOCK, {"run_id": run_id, "seq": seq}).one_or_none()
        if item is None or tenant not in (None, item.tenant):
            raise ItemNotFoundError(f"no item {seq} of run {run_id} came through the gateway")
        known = connection.execute(by_moderator.order_by(reviews.c.id.desc()).limit(1)).one_or_none()
        if known and {name: known._mapping[name] for name in said} == said:
            return _review(known)
        made = sa.insert(reviews).values(run_id=run_id, seq=seq, moderator=moderator, **said)
        review = _review(connection.execute(made.returning(reviews)).one())
        for table in (decisions, disagreements):  # off the queue's indexes, which every look reads from the start
            waiting = sa.update(table).where(table.c.run_id == run_id, table.c.seq == seq)
            connection.execute(waiting.where(table.c.reviewed_at.is_(None)).values(reviewed_at=sa.func.now()))
        data = HumanReview(
            run_id=run_id,
            seq=seq,
            id=submitted_name(run_id, seq),
            custom_id=item.custom_id,
            label=label,
            action=action,
            metadata=exported_metadata(item.metadata),
        )
        withdraw_contrary(connection, run_id, seq, action.value)
        message = WebhookMessage(seq, item.tenant, item.callback_url, data)
        post(connection, run_id, Event.REVIEWED, [message])
    return review


def review_history(engine: sa.Engine, run_id: str, seq: int) -> list[Review]:
    """Everything that humans decided of one item, the newest first."""
    of_item = sa.and_(reviews.c.run_id == run_id, reviews.c.seq == seq)
    return [_review(row) for row in fetch_all(engine, sa.select(reviews).where(of_item).order_by(reviews.c.id.desc()))]


def _review(row: Row) -> Review:
    return Review(**{**named(Review, row), "label": Label(row.label), "action": Action(row.action)})


def note_disagreements(engine: sa.Engine, child_run_id: str, parent: str) -> int:
    """Note where a child run's guard gave another label than its parent's (both gave one); returns how many are new."""
    statement = sa.text(
        """
        INSERT INTO disagreements (run_id, seq, child_run_id, child_seq)
        SELECT i.run_id, i.seq, c.run_id, c.seq
        FROM items c JOIN verdicts cv USING (run_id, seq)
        JOIN items i ON i.run_id = :parent AND i.item_id = c.item_id
        JOIN verdicts v ON v.run_id = i.run_id AND v.seq = i.seq
        WHERE c.run_id = :child AND cv.iteration = 0 AND v.iteration = 0 AND v.label <> cv.label
        ON CONFLICT DO NOTHING
        """
    )
    with engine.begin() as connection:
        take_long(connection, whole_run=True)
        return connection.execute(statement, {"child": child_run_id, "parent": parent}).rowcount
