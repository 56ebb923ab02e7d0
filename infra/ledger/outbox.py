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


class Letter(NamedTuple):
    """One thing to tell one tenant about one item, at its endpoints and at the item's own address."""

    seq: int
    tenant: str
    callback_url: str | None
    data: JudgedItem | HumanReview


def post(connection: sa.Connection, run_id: str, event: Event, letters: Sequence[Letter]) -> int:
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
