"""Webhooks: endpoints with their signing secrets, and the outbox of messages, one row per destination.

A message is written in the transaction of what happened. It is due at `next_at`; the sender that takes it moves that
by a lease, so that it comes back if the sender dies. Secrets are kept as they are: a signature needs the secret
itself, not a hash of it.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert

from infra.errors import EndpointNotFoundError
from infra.ledger.engine import Row, execute, fetch_all, fetch_value, named
from infra.ledger.tables import outbox, webhook_endpoints, webhook_secrets
from schemas.webhooks import Envelope, Event, HumanReview, JudgedItem

STANDARD: Final = "whsec_"
"""The form of a secret that signs by the Standard Webhooks convention."""
SEED: Final = "seed_"
"""The form of a secret that is the seed of a checksum (producer/webhooks/signing.py)."""

_SECRET_BYTES: Final = 32
_KEPT_SECRETS: Final = 2
"""The newest secret and the one before it: receivers change over while both sign."""


# A row for each of the tenant's endpoints that wants the event, and one for the item's own address.
_POST: Final = sa.text(
    """
    INSERT INTO outbox (id, tenant, endpoint_id, callback_url, event, run_id, seq, body)
    SELECT 'msg_' || replace(gen_random_uuid()::text, '-', ''), m.tenant, t.endpoint_id, t.callback_url, :event,
           :run_id, m.seq, m.body
    FROM unnest(CAST(:seqs AS bigint[]), CAST(:tenants AS text[]), CAST(:callback_urls AS text[]),
                CAST(:bodies AS text[])) AS m(seq, tenant, callback_url, body)
    CROSS JOIN LATERAL (
        SELECT e.id AS endpoint_id, NULL AS callback_url FROM webhook_endpoints e
        WHERE e.tenant = m.tenant AND e.disabled_at IS NULL AND :event = ANY(e.events)
        UNION ALL SELECT NULL, m.callback_url WHERE m.callback_url IS NOT NULL
    ) AS t
    """
)


def exported_metadata(stored: object) -> dict[str, object]:
    """An item's metadata as platforms get it; anything but a JSON object was never accepted as one."""
    return stored if isinstance(stored, dict) else {}


class WebhookMessage(NamedTuple):
    """A notification of one tenant about one item, at its endpoints and at the item's own address."""

    seq: int
    tenant: str
    callback_url: str | None
    data: JudgedItem | HumanReview


def post(connection: sa.Connection, run_id: str, event: Event, messages: Sequence[WebhookMessage]) -> None:
    """Put messages into the outbox within the caller's transaction."""
    if not messages:
        return
    now = datetime.now(UTC)
    values = {
        "event": event.value,
        "run_id": run_id,
        "seqs": [message.seq for message in messages],
        "tenants": [message.tenant for message in messages],
        "callback_urls": [message.callback_url for message in messages],
        "bodies": [Envelope(type=event, timestamp=now, data=message.data).model_dump_json() for message in messages],
    }
    connection.execute(_POST, values)


def withdraw_contrary(connection: sa.Connection, run_id: str, seq: int, action: str) -> None:
    """Send none of an item's messages that waits and tells of another action: a human has decided on this one."""
    statement = sa.text(
        """
        UPDATE outbox SET state = 'failed', settled_at = now(), last_error = 'a human decided otherwise'
        WHERE run_id = :run_id AND seq = :seq AND state = 'pending'
          AND CAST(body AS jsonb) #>> '{data,action}' IS DISTINCT FROM :action
        """
    )
    connection.execute(statement, {"run_id": run_id, "seq": seq, "action": action})


class Delivery(NamedTuple):
    """A message that a sender has taken, with its address and its signing secrets, the newest first.

    `url` is None where the endpoint was removed meanwhile; `attempt` counts from 1.
    """

    id: str
    tenant: str
    endpoint_id: str | None
    url: str | None
    secrets: tuple[str, ...]
    body: str
    attempt: int
    destination: str
    """Messages with the same one go to the same receiver."""


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


_DESTINATION: Final = "coalesce(o.endpoint_id, o.tenant || ' ' || split_part(o.callback_url, '/', 3))"
"""An endpoint, or the host of a tenant's callback addresses."""

# SKIP LOCKED: senders take different rows and none waits. Endpoints that rest or are disabled are left alone, and so
# are destinations without room; of each other, no more than there is room for.
_TAKE: Final = sa.text(
    f"""
    WITH candidate AS (
        SELECT o.id, o.next_at, {_DESTINATION} AS destination
        FROM outbox o LEFT JOIN webhook_endpoints e ON e.id = o.endpoint_id
        WHERE o.state = 'pending' AND o.next_at <= now() AND e.disabled_at IS NULL
          AND (e.paused_until IS NULL OR e.paused_until <= now())
          AND {_DESTINATION} <> ALL(CAST(:full AS text[])) AND o.tenant <> ALL(CAST(:full_tenants AS text[]))
        ORDER BY o.next_at LIMIT :candidates
    ), placed AS (
        SELECT id, coalesce(room, :first_room) AS room,
               row_number() OVER (PARTITION BY destination ORDER BY next_at, id) AS place
        FROM candidate LEFT JOIN unnest(CAST(:destinations AS text[]), CAST(:rooms AS int[])) AS w(destination, room)
             USING (destination)
    ), due AS (
        SELECT o.id FROM outbox o JOIN placed USING (id)
        WHERE place <= room AND o.state = 'pending' AND o.next_at <= now()
        ORDER BY o.next_at LIMIT :limit FOR UPDATE OF o SKIP LOCKED
    )
    UPDATE outbox o SET attempts = o.attempts + 1, next_at = now() + make_interval(secs => :lease_s)
    FROM due WHERE o.id = due.id
    RETURNING o.id, o.tenant, o.endpoint_id, o.body, o.attempts, o.callback_url, {_DESTINATION} AS destination,
              (SELECT e.url FROM webhook_endpoints e WHERE e.id = o.endpoint_id) AS endpoint_url,
              coalesce((SELECT e.secrets FROM webhook_endpoints e WHERE e.id = o.endpoint_id),
                       (SELECT w.secrets FROM webhook_secrets w WHERE w.tenant = o.tenant AND o.endpoint_id IS NULL),
                       '{{}}') AS secrets
    """  # noqa: S608 - our own
)
_CANDIDATES_PER_TAKEN: Final = 16


def take_due(
    engine: sa.Engine,
    *,
    limit: int,
    lease_s: float,
    rooms: Mapping[str, int] | None = None,
    first_room: int | None = None,
    full_tenants: Sequence[str] = (),
) -> list[Delivery]:
    """Take due messages, each for at most `lease_s` seconds; other senders see none of them meanwhile.

    Of a destination in `rooms` at most so many are taken, of another at most `first_room` (None: any number), and of
    `full_tenants` none.
    """
    rooms = rooms or {}
    values = {
        "limit": limit,
        "lease_s": lease_s,
        "candidates": _CANDIDATES_PER_TAKEN * limit,
        "full": [name for name, room in rooms.items() if not room],
        "full_tenants": list(full_tenants),
        "destinations": list(rooms),
        "rooms": list(rooms.values()),
        "first_room": limit if first_room is None else first_room,
    }
    return [
        Delivery(
            **{**named(Delivery, row), "secrets": tuple(row.secrets)},
            url=row.endpoint_url or row.callback_url,
            attempt=row.attempts,
        )
        for row in fetch_all(engine, _TAKE, values)
    ]


def note_delivered(engine: sa.Engine, taken: Delivery, status: int) -> None:
    """The receiver has it."""
    # A late answer counts, whichever sender holds the message by now.
    mine = sa.update(outbox).where(outbox.c.id == taken.id, outbox.c.state != "delivered")
    execute(engine, mine.values(state="delivered", settled_at=sa.func.now(), last_status=status, last_error=None))


def note_failed(
    engine: sa.Engine, taken: Delivery, error: str, *, status: int | None, retry_s: float | None, pause_s: float = 0
) -> None:
    """An attempt failed: the next one in `retry_s` seconds, or none. `pause_s`: let its endpoint rest so long."""
    # Only the sender that took a row last may note its fate.
    attempt = sa.and_(outbox.c.id == taken.id, outbox.c.attempts == taken.attempt, outbox.c.state == "pending")
    if retry_s is None:
        fate: dict[str, Any] = {"state": "failed", "settled_at": sa.func.now()}
    else:
        fate = {"next_at": _in(retry_s)}
    with engine.begin() as connection:
        connection.execute(sa.update(outbox).where(attempt).values(last_status=status, last_error=error, **fate))
        if pause_s and taken.endpoint_id:
            endpoint = sa.update(webhook_endpoints).where(webhook_endpoints.c.id == taken.endpoint_id)
            connection.execute(endpoint.values(paused_until=_in(pause_s)))


def _in(seconds: float) -> sa.ColumnElement[datetime]:
    return sa.func.now() + timedelta(seconds=seconds)


def sent(
    engine: sa.Engine, *, tenant: str | None = None, state: str | None = None, limit: int | None = 50
) -> list[Sent]:
    """The newest rows of the outbox."""
    known = outbox.c
    statement = sa.select(
        *(known.id, known.tenant, known.event, known.run_id, known.seq),
        sa.func.coalesce(known.endpoint_id, known.callback_url),
        *(known.state, known.attempts, known.next_at, known.last_status, known.last_error),
        *(known.created_at, known.settled_at),
    ).order_by(known.created_at.desc(), known.id)
    wanted = ((known.tenant, tenant), (known.state, state))
    criteria = [column == value for column, value in wanted if value is not None]
    return [Sent(*row) for row in fetch_all(engine, statement.where(*criteria).limit(limit))]


def replay(
    engine: sa.Engine,
    *,
    ids: Sequence[str] | None = None,
    tenant: str | None = None,
    endpoint_id: str | None = None,
    state: str | None = None,
    since: datetime | None = None,
) -> int:
    """Make settled rows due again, with the same ids and bodies; returns their number. Every criterion must hold."""
    known = outbox.c
    criteria = [known.state != "pending"]
    if ids is not None:
        criteria.append(known.id.in_(ids))
    if since is not None:
        criteria.append(known.created_at >= since)
    wanted = ((known.tenant, tenant), (known.endpoint_id, endpoint_id), (known.state, state))
    criteria += [column == value for column, value in wanted if value is not None]
    again = sa.update(outbox).where(*criteria)
    return execute(engine, again.values(state="pending", attempts=0, next_at=sa.func.now(), settled_at=None))


class Endpoint(NamedTuple):
    """A tenant's address for events; the newest secret first."""

    id: str
    tenant: str
    url: str
    secrets: tuple[str, ...]
    events: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None
    reason: str | None


def new_secret(form: str = STANDARD) -> str:
    """A fresh signing secret of this form, which says how messages are signed with it."""
    return form + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def add_endpoint(
    engine: sa.Engine, tenant: str, url: str, events: Sequence[Event] = tuple(Event), *, form: str = STANDARD
) -> Endpoint:
    """Store an endpoint with a secret of its own. The sender checks, at each use, that the address is allowed."""
    made = sa.insert(webhook_endpoints).values(
        id=f"we_{secrets.token_hex(8)}", tenant=tenant, url=url, secrets=[new_secret(form)], events=[*events]
    )
    (row,) = fetch_all(engine, made.returning(webhook_endpoints))
    return _endpoint(row)


def endpoints(engine: sa.Engine, tenant: str | None = None) -> list[Endpoint]:
    """All endpoints, or those of a tenant, the oldest first."""
    statement = sa.select(webhook_endpoints).order_by(webhook_endpoints.c.created_at, webhook_endpoints.c.id)
    if tenant is not None:
        statement = statement.where(webhook_endpoints.c.tenant == tenant)
    return [_endpoint(row) for row in fetch_all(engine, statement)]


def _endpoint(row: Row) -> Endpoint:
    return Endpoint(**{**named(Endpoint, row), "secrets": tuple(row.secrets), "events": tuple(row.events)})


def remove_endpoint(engine: sa.Engine, endpoint_id: str) -> None:
    """Forget an endpoint; what still waits for it fails.

    Raises:
        EndpointNotFoundError: there is none.
    """
    with engine.begin() as connection:
        gone = connection.execute(sa.delete(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id)).rowcount
        if not gone:
            raise EndpointNotFoundError(f"no endpoint {endpoint_id!r}")
        _fail_waiting(connection, endpoint_id, "the endpoint was removed")


def disable_endpoint(engine: sa.Engine, endpoint_id: str, reason: str) -> None:
    """Send an endpoint nothing more; what still waits for it fails, and can be replayed once it is enabled."""
    enabled = sa.and_(webhook_endpoints.c.id == endpoint_id, webhook_endpoints.c.disabled_at.is_(None))
    disabled = sa.update(webhook_endpoints).where(enabled).values(disabled_at=sa.func.now(), reason=reason)
    with engine.begin() as connection:
        connection.execute(disabled)
        _fail_waiting(connection, endpoint_id, f"the endpoint is disabled: {reason}")


def enable_endpoint(engine: sa.Engine, endpoint_id: str) -> None:
    """Send a disabled endpoint what happens from now on.

    Raises:
        EndpointNotFoundError: there is none.
    """
    _change_endpoint(engine, endpoint_id, disabled_at=None, reason=None, paused_until=None)


def _change_endpoint(engine: sa.Engine, endpoint_id: str, **values: Any) -> None:  # noqa: ANN401 - columns
    if not execute(engine, sa.update(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id).values(**values)):
        raise EndpointNotFoundError(f"no endpoint {endpoint_id!r}")


def _fail_waiting(connection: sa.Connection, endpoint_id: str, error: str) -> None:
    waiting = sa.update(outbox).where(outbox.c.endpoint_id == endpoint_id, outbox.c.state == "pending")
    connection.execute(waiting.values(state="failed", settled_at=sa.func.now(), last_error=error))


def rotate_endpoint_secret(engine: sa.Engine, endpoint_id: str) -> str:
    """A new secret that signs from now on, alongside the last one; an older one no longer counts.

    Raises:
        EndpointNotFoundError: there is no such endpoint.
    """
    this = sa.select(webhook_endpoints.c.secrets[1]).where(webhook_endpoints.c.id == endpoint_id)
    is_seed = str(fetch_value(engine, this) or "").startswith(SEED)
    secret = new_secret(SEED if is_seed else STANDARD)
    kept = sa.literal([secret], ARRAY(sa.Text)) + webhook_endpoints.c.secrets
    _change_endpoint(engine, endpoint_id, secrets=kept[1:_KEPT_SECRETS])
    return secret


def tenant_secrets(engine: sa.Engine, tenant: str) -> tuple[str, ...]:
    """The secrets that sign messages to addresses which a tenant's items bring along, the newest first.

    Without one, such messages are not sent.
    """
    statement = sa.select(webhook_secrets.c.secrets).where(webhook_secrets.c.tenant == tenant)
    return tuple(fetch_value(engine, statement) or ())


def rotate_tenant_secret(engine: sa.Engine, tenant: str) -> str:
    """A new secret for a tenant's callback addresses, alongside the last one; an older one no longer counts."""
    secret = new_secret()
    made = insert(webhook_secrets).values(tenant=tenant, secrets=[secret])
    kept = made.excluded.secrets + webhook_secrets.c.secrets
    execute(engine, made.on_conflict_do_update(index_elements=["tenant"], set_={"secrets": kept[1:_KEPT_SECRETS]}))
    return secret
