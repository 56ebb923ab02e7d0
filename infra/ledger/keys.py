"""API keys: made, found, revoked. The ledger holds a hash of each, the key itself is shown once.

A key is 256 random bits, so that there is nothing to guess: a plain SHA-256 tells no more of it than a slow,
salted hash would, and is cheap enough for every request. (Slow hashes are for passwords, which people choose.)
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.errors import KeyNotFoundError
from infra.ledger.engine import Row, fetch_all, fetch_one
from infra.ledger.tables import api_keys
from schemas.access import Role

_KEY_BYTES: Final = 32
_PREFIX: Final = "lk_"
_SIGNING_PREFIX: Final = "ls_"
_COLUMNS: Final = (
    *(api_keys.c.id, api_keys.c.tenant, api_keys.c.role, api_keys.c.note),
    *(api_keys.c.created_at, api_keys.c.revoked_at),
)


class ApiKey(NamedTuple):
    """A key's record, without the key."""

    id: str
    tenant: str
    role: Role
    note: str
    created_at: datetime
    revoked_at: datetime | None


def create_key(engine: sa.Engine, *, tenant: str, role: Role, note: str = "") -> tuple[ApiKey, str]:
    """Make a key; the second value is the key itself, which nobody can find out afterwards."""
    secret = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    made = sa.insert(api_keys).values(
        id="k" + secrets.token_hex(5), digest=_digest(secret), tenant=tenant, role=role.value, note=note
    )
    (row,) = fetch_all(engine, made.returning(*_COLUMNS))
    return _key(row), secret


def find_key(engine: sa.Engine, secret: str) -> ApiKey | None:
    """The key's record, or None where there is no such key or it was revoked."""
    return _valid(engine, api_keys.c.digest == _digest(secret))


def valid_key(engine: sa.Engine, key_id: str) -> ApiKey | None:
    """A key by its id, or None where there is no such key or it was revoked."""
    return _valid(engine, api_keys.c.id == key_id)


def _valid(engine: sa.Engine, which: sa.ColumnElement[bool]) -> ApiKey | None:
    row = fetch_one(engine, sa.select(*_COLUMNS).where(which, api_keys.c.revoked_at.is_(None)))
    return _key(row) if row else None


def signing_secret(master: str, key_id: str) -> str:
    """The secret with which requests are signed in the name of a key: derived, so that nothing more has to be kept.

    It is as good as the master secret is random, and ends with the key.
    """
    return _SIGNING_PREFIX + hmac.digest(master.encode(), b"libra signing secret " + key_id.encode(), "sha256").hex()


def list_keys(engine: sa.Engine, *, tenant: str | None = None) -> list[ApiKey]:
    """All keys, or a tenant's, newest first; revoked ones as well."""
    statement = sa.select(*_COLUMNS).order_by(api_keys.c.created_at.desc(), api_keys.c.id)
    if tenant is not None:
        statement = statement.where(api_keys.c.tenant == tenant)
    return [_key(row) for row in fetch_all(engine, statement)]


def revoke_key(engine: sa.Engine, key_id: str) -> ApiKey:
    """End a key; revoking it again changes nothing.

    Raises:
        KeyNotFoundError: there is no such key.
    """
    revoked = sa.update(api_keys).where(api_keys.c.id == key_id).returning(*_COLUMNS)
    row = fetch_one(engine, revoked.values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.func.now())))
    if row is None:
        raise KeyNotFoundError(f"no key {key_id!r}")
    return _key(row)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: Row) -> ApiKey:
    return ApiKey(row.id, row.tenant, Role(row.role), row.note, row.created_at, row.revoked_at)
