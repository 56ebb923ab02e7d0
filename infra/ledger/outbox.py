"""The outbox: what platforms are to be told, written in the transaction of what happened. One row per destination.

A row is due at `next_at`. Who takes it moves that by a lease, so that it comes back if its sender dies.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from schemas.webhooks import Envelope, Event, HumanReview, JudgedItem

_POST: Final = sa.text(
    """
    INSERT INTO outbox (id, tenant, endpoint_id, callback_url, event, run_id, seq, body)
    SELECT 'msg_' || replace(gen_random_uuid()::text, '-', ''), l.tenant, t.endpoint_id, t.callback_url, :event,
           :run_id, l.seq, l.body
    FROM unnest(CAST(:seqs AS bigint[]), CAST(:tenants AS text[]), CAST(:callback_urls AS text[]),
                CAST(:bodies AS text[])) AS l(seq, tenant, callback_url, body)
    CROSS JOIN LATERAL (
        SELECT e.id AS endpoint_id, NULL AS callback_url FROM webhook_endpoints e
        WHERE e.tenant = l.tenant AND e.disabled_at IS NULL AND :event = ANY(e.events)
        UNION ALL SELECT NULL, l.callback_url WHERE l.callback_url IS NOT NULL
    ) AS t
    """
)


def exported_metadata(stored: object) -> dict[str, object]:
    """An item's metadata as platforms are told it; whatever is no JSON object was never accepted as one."""
    return stored if isinstance(stored, dict) else {}


class WebhookMessage(NamedTuple):
    """One thing to tell one tenant about one item, at its endpoints and at the item's own address."""

    seq: int
    tenant: str
    callback_url: str | None
    data: JudgedItem | HumanReview


def post(connection: sa.Connection, run_id: str, event: Event, letters: Sequence[WebhookMessage]) -> int:
    """Put letters into the outbox within the caller's transaction; returns how many rows that made."""
    if not letters:
        return 0
    now = datetime.now(UTC)
    values = {
        "event": event.value,
        "run_id": run_id,
        "seqs": [letter.seq for letter in letters],
        "tenants": [letter.tenant for letter in letters],
        "callback_urls": [letter.callback_url for letter in letters],
        "bodies": [Envelope(type=event, timestamp=now, data=letter.data).model_dump_json() for letter in letters],
    }
    return connection.execute(_POST, values).rowcount


class Delivery(NamedTuple):
    """A letter that a sender has taken: where it goes, and what it is signed with (the newest secret first).

    `url` is None where the endpoint was removed meanwhile; `attempt` counts from 1.
    """

    id: str
    tenant: str
    endpoint_id: str | None
    url: str | None
    secrets: tuple[str, ...]
    body: str
    attempt: int


class Sent(NamedTuple):
    """A row of the outbox as an operator sees it; the body is left out."""

    id: str
    tenant: str
    event: str
    run_id: str
    seq: int
    destination: str
    state: str
    attempts: int
    next_at: datetime
    last_status: int | None
    last_error: str | None
    created_at: datetime
    settled_at: datetime | None


_TAKE: Final = sa.text(
    """
    WITH due AS (
        SELECT o.id FROM outbox o LEFT JOIN webhook_endpoints e ON e.id = o.endpoint_id
        WHERE o.state = 'pending' AND o.next_at <= now() AND e.disabled_at IS NULL
          AND (e.paused_until IS NULL OR e.paused_until <= now())
        ORDER BY o.next_at LIMIT :limit FOR UPDATE OF o SKIP LOCKED
    )
    UPDATE outbox o SET attempts = o.attempts + 1, next_at = now() + make_interval(secs => :lease_s)
    FROM due WHERE o.id = due.id
    RETURNING o.id, o.tenant, o.endpoint_id, o.body, o.attempts, o.callback_url,
              (SELECT e.url FROM webhook_endpoints e WHERE e.id = o.endpoint_id) AS endpoint_url,
              coalesce((SELECT e.secrets FROM webhook_endpoints e WHERE e.id = o.endpoint_id),
                       (SELECT w.secrets FROM webhook_secrets w WHERE w.tenant = o.tenant AND o.endpoint_id IS NULL),
                       '{}') AS secrets
    """
)

_HELD: Final = "WHERE id = :id AND attempts = :attempt AND state = 'pending'"
"""Only who took a row last may say what became of it."""


def take_due(engine: sa.Engine, *, limit: int, lease_s: float) -> list[Delivery]:
    """Take due letters, each for at most `lease_s` seconds; other senders see none of them meanwhile."""
    with engine.begin() as connection:
        rows = connection.execute(_TAKE, {"limit": limit, "lease_s": lease_s}).all()
    return [
        Delivery(
            row.id,
            row.tenant,
            row.endpoint_id,
            row.endpoint_url or row.callback_url,
            tuple(row.secrets),
            row.body,
            row.attempts,
        )
        for row in rows
    ]


def note_delivered(engine: sa.Engine, taken: Delivery, status: int) -> None:
    """The receiver has it."""
    statement = sa.text(
        "UPDATE outbox SET state = 'delivered', settled_at = now(), last_status = :status, last_error = NULL "
        "WHERE id = :id AND state <> 'delivered'"  # a late answer counts, whoever holds the letter by now
    )
    with engine.begin() as connection:
        connection.execute(statement, {"id": taken.id, "status": status})


def note_failed(
    engine: sa.Engine, taken: Delivery, error: str, *, status: int | None, retry_s: float | None, pause_s: float = 0
) -> None:
    """An attempt failed: the next one in `retry_s` seconds, or none. `pause_s`: let its endpoint rest so long."""
    again = sa.text(
        f"""
        UPDATE outbox SET last_status = :status, last_error = :error,
                          next_at = CASE WHEN CAST(:retry_s AS float8) IS NULL THEN next_at
                                         ELSE now() + make_interval(secs => :retry_s) END,
                          state = CASE WHEN CAST(:retry_s AS float8) IS NULL THEN 'failed' ELSE 'pending' END,
                          settled_at = CASE WHEN CAST(:retry_s AS float8) IS NULL THEN now() END
        {_HELD}
        """  # noqa: S608 - no user text in it
    )
    rest = sa.text(
        "UPDATE webhook_endpoints SET paused_until = now() + make_interval(secs => :pause_s) WHERE id = :endpoint_id"
    )
    values = {"id": taken.id, "attempt": taken.attempt, "status": status, "error": error, "retry_s": retry_s}
    with engine.begin() as connection:
        connection.execute(again, values)
        if pause_s and taken.endpoint_id:
            connection.execute(rest, {"pause_s": pause_s, "endpoint_id": taken.endpoint_id})


def sent(
    engine: sa.Engine, *, tenant: str | None = None, state: str | None = None, limit: int | None = 50
) -> list[Sent]:
    """The newest rows of the outbox."""
    statement = sa.text(
        """
        SELECT o.id, o.tenant, o.event, o.run_id, o.seq, coalesce(o.endpoint_id, o.callback_url) AS destination,
               o.state, o.attempts, o.next_at, o.last_status, o.last_error, o.created_at, o.settled_at
        FROM outbox o
        WHERE (CAST(:tenant AS text) IS NULL OR o.tenant = :tenant)
          AND (CAST(:state AS text) IS NULL OR o.state = :state)
        ORDER BY o.created_at DESC, o.id LIMIT :limit
        """
    )
    with engine.connect() as connection:
        rows = connection.execute(statement, {"tenant": tenant, "state": state, "limit": limit})
        return [Sent(*row) for row in rows]


def replay(
    engine: sa.Engine,
    *,
    ids: Sequence[str] | None = None,
    tenant: str | None = None,
    endpoint_id: str | None = None,
    state: str | None = None,
    since: datetime | None = None,
) -> int:
    """Make settled rows due again, with the same ids and bodies; returns how many. Every criterion given must hold."""
    statement = sa.text(
        """
        UPDATE outbox SET state = 'pending', attempts = 0, next_at = now(), settled_at = NULL
        WHERE state <> 'pending'
          AND (CAST(:ids AS text[]) IS NULL OR id = ANY(CAST(:ids AS text[])))
          AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
          AND (CAST(:endpoint_id AS text) IS NULL OR endpoint_id = :endpoint_id)
          AND (CAST(:state AS text) IS NULL OR state = :state)
          AND (CAST(:since AS timestamptz) IS NULL OR created_at >= :since)
        """
    )
    values = {
        "ids": None if ids is None else list(ids),
        "tenant": tenant,
        "endpoint_id": endpoint_id,
        "state": state,
        "since": since,
    }
    with engine.begin() as connection:
        return connection.execute(statement, values).rowcount
