"""API keys: made, found, revoked. The ledger holds a hash of each, the key itself is shown once.

A key is 256 random bits, so that there is nothing to guess: a plain SHA-256 tells no more of it than a slow,
salted hash would, and is cheap enough for every request. (Slow hashes are for passwords, which people choose.)
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import KeyNotFoundError
from schemas.access import Role

_KEY_BYTES: Final = 32
_PREFIX: Final = "lk_"
_COLUMNS: Final = "id, tenant, role, note, created_at, revoked_at"


class ApiKey(NamedTuple):
    """What is known of a key, without the key."""

    id: str
    tenant: str
    role: Role
    note: str
    created_at: datetime
    revoked_at: datetime | None


def create_key(engine: sa.Engine, *, tenant: str, role: Role, note: str = "") -> tuple[ApiKey, str]:
    """Make a key; the second value is the key itself, which nobody can find out afterwards."""
    secret = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    values = {
        "id": "k" + secrets.token_hex(5),
        "digest": _digest(secret),
        "tenant": tenant,
        "role": role.value,
        "note": note,
    }
    statement = sa.text(
        "INSERT INTO api_keys (id, digest, tenant, role, note) VALUES (:id, :digest, :tenant, :role, :note) "  # noqa: S608
        f"RETURNING {_COLUMNS}"
    )
    with engine.begin() as connection:
        return _key(connection.execute(statement, values).one()), secret


def find_key(engine: sa.Engine, secret: str) -> ApiKey | None:
    """The key's record, or None where there is no such key or it was revoked."""
    statement = sa.text(f"SELECT {_COLUMNS} FROM api_keys WHERE digest = :digest AND revoked_at IS NULL")  # noqa: S608
    with engine.connect() as connection:
        row = connection.execute(statement, {"digest": _digest(secret)}).one_or_none()
    return _key(row) if row else None


def valid_key(engine: sa.Engine, key_id: str) -> ApiKey | None:
    """A key by its id, or None where there is no such key or it was revoked."""
    statement = sa.text(f"SELECT {_COLUMNS} FROM api_keys WHERE id = :id AND revoked_at IS NULL")  # noqa: S608
    with engine.connect() as connection:
        row = connection.execute(statement, {"id": key_id}).one_or_none()
    return _key(row) if row else None


def list_keys(engine: sa.Engine, *, tenant: str | None = None) -> list[ApiKey]:
    """All keys, or a tenant's, newest first; revoked ones as well."""
    statement = sa.text(
        f"SELECT {_COLUMNS} FROM api_keys WHERE tenant = coalesce(:tenant, tenant) ORDER BY created_at DESC, id"  # noqa: S608
    )
    with engine.connect() as connection:
        return [_key(row) for row in connection.execute(statement, {"tenant": tenant})]


def revoke_key(engine: sa.Engine, key_id: str) -> ApiKey:
    """End a key; revoking it again changes nothing.

    Raises:
        KeyNotFoundError: there is no such key.
    """
    statement = sa.text(
        f"UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id RETURNING {_COLUMNS}"  # noqa: S608
    )
    with engine.begin() as connection:
        row = connection.execute(statement, {"id": key_id}).one_or_none()
    if row is None:
        raise KeyNotFoundError(f"no key {key_id!r}")
    return _key(row)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(row.id, row.tenant, Role(row.role), row.note, row.created_at, row.revoked_at)
