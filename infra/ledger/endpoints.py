"""Where platforms want to be told, and the secrets that what they are told is signed with.

Secrets are kept as they are: a signature needs the secret itself, not a hash of it.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import EndpointNotFoundError
from schemas.webhooks import Event

_SECRET_BYTES: Final = 32
_KEPT_SECRETS: Final = 2
"""The newest secret and the one before it: receivers change over while both sign."""


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


def new_secret() -> str:
    """A fresh signing secret in the form of the Standard Webhooks convention."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def add_endpoint(engine: sa.Engine, tenant: str, url: str, events: Sequence[Event] = tuple(Event)) -> Endpoint:
    """Store an endpoint with a secret of its own. Whether the address may be told is the sender's to check."""
    statement = sa.text(
        "INSERT INTO webhook_endpoints (id, tenant, url, secrets, events) "
        "VALUES (:id, :tenant, :url, CAST(:secrets AS text[]), CAST(:events AS text[])) RETURNING *"
    )
    values = {
        "id": f"we_{secrets.token_hex(8)}",
        "tenant": tenant,
        "url": url,
        "secrets": [new_secret()],
        "events": [event.value for event in events],
    }
    with engine.begin() as connection:
        return _endpoint(connection.execute(statement, values).one())


def endpoints(engine: sa.Engine, tenant: str | None = None) -> list[Endpoint]:
    """All endpoints, or those of a tenant, the oldest first."""
    statement = sa.text(
        "SELECT * FROM webhook_endpoints WHERE CAST(:tenant AS text) IS NULL OR tenant = :tenant "
        "ORDER BY created_at, id"
    )
    with engine.connect() as connection:
        return [_endpoint(row) for row in connection.execute(statement, {"tenant": tenant})]


def _endpoint(row: sa.Row[tuple[object, ...]]) -> Endpoint:
    return Endpoint(
        id=row.id,
        tenant=row.tenant,
        url=row.url,
        secrets=tuple(row.secrets),
        events=tuple(row.events),
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        reason=row.reason,
    )


def remove_endpoint(engine: sa.Engine, endpoint_id: str) -> None:
    """Forget an endpoint; what still waits for it fails.

    Raises:
        EndpointNotFoundError: there is none.
    """
    with engine.begin() as connection:
        gone = connection.execute(sa.text("DELETE FROM webhook_endpoints WHERE id = :id"), {"id": endpoint_id}).rowcount
        if not gone:
            raise _unknown(endpoint_id)
        _fail_waiting(connection, endpoint_id, "the endpoint was removed")


def disable_endpoint(engine: sa.Engine, endpoint_id: str, reason: str) -> None:
    """Tell an endpoint nothing more; what still waits for it fails, and can be replayed once it is enabled."""
    statement = sa.text(
        "UPDATE webhook_endpoints SET disabled_at = now(), reason = :reason WHERE id = :id AND disabled_at IS NULL"
    )
    with engine.begin() as connection:
        connection.execute(statement, {"id": endpoint_id, "reason": reason})
        _fail_waiting(connection, endpoint_id, f"the endpoint is disabled: {reason}")


def enable_endpoint(engine: sa.Engine, endpoint_id: str) -> None:
    """Tell a disabled endpoint what happens from now on.

    Raises:
        EndpointNotFoundError: there is none.
    """
    statement = sa.text(
        "UPDATE webhook_endpoints SET disabled_at = NULL, reason = NULL, paused_until = NULL WHERE id = :id"
    )
    with engine.begin() as connection:
        if not connection.execute(statement, {"id": endpoint_id}).rowcount:
            raise _unknown(endpoint_id)


def _fail_waiting(connection: sa.Connection, endpoint_id: str, error: str) -> None:
    statement = sa.text(
        "UPDATE outbox SET state = 'failed', settled_at = now(), last_error = :error "
        "WHERE endpoint_id = :id AND state = 'pending'"
    )
    connection.execute(statement, {"id": endpoint_id, "error": error})


def rotate_endpoint_secret(engine: sa.Engine, endpoint_id: str) -> str:
    """A new secret that signs from now on, beside the last one; an older one no longer counts.

    Raises:
        EndpointNotFoundError: there is no such endpoint.
    """
    secret = new_secret()
    statement = sa.text(
        f"UPDATE webhook_endpoints SET secrets = (ARRAY[CAST(:secret AS text)] || secrets)[1:{_KEPT_SECRETS}] "  # noqa: S608
        "WHERE id = :id"
    )
    with engine.begin() as connection:
        if not connection.execute(statement, {"id": endpoint_id, "secret": secret}).rowcount:
            raise _unknown(endpoint_id)
    return secret


def tenant_secrets(engine: sa.Engine, tenant: str) -> tuple[str, ...]:
    """What signs letters to the addresses that a tenant's items bring along; the newest first, none: none are sent."""
    statement = sa.text("SELECT secrets FROM webhook_secrets WHERE tenant = :tenant")
    with engine.connect() as connection:
        return tuple(connection.scalar(statement, {"tenant": tenant}) or ())


def rotate_tenant_secret(engine: sa.Engine, tenant: str) -> str:
    """A new secret for a tenant's callback addresses, beside the last one; an older one no longer counts."""
    secret = new_secret()
    statement = sa.text(
        f"""
        INSERT INTO webhook_secrets AS w (tenant, secrets) VALUES (:tenant, ARRAY[CAST(:secret AS text)])
        ON CONFLICT (tenant) DO UPDATE SET secrets = (excluded.secrets || w.secrets)[1:{_KEPT_SECRETS}]
        """  # noqa: S608 - no user text in it
    )
    with engine.begin() as connection:
        connection.execute(statement, {"tenant": tenant, "secret": secret})
    return secret


def _unknown(endpoint_id: str) -> EndpointNotFoundError:
    return EndpointNotFoundError(f"no endpoint {endpoint_id!r}")
