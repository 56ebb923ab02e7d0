"""Policies in the ledger: every version as it was put, one of each name active, and which one is a tenant's default.

Whoever decides reads the active version in the transaction of the decision, so that all collectors agree. A stored
version never changes, which is why its parsed form may be kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

import sqlalchemy as sa
from pydantic import ValidationError

from infra.errors import PolicyNotFoundError, TakenError
from schemas.policy import Policy

_ACTIVE: Final = sa.text(
    "SELECT name, body::text AS body FROM policies WHERE active AND name = ANY(CAST(:names AS text[]))"
)


class StoredPolicy(NamedTuple):
    """One version of a policy. `tenants`: whose default this name is."""

    policy: Policy
    active: bool
    created_at: datetime
    tenants: tuple[str, ...]


@lru_cache(maxsize=256)
def _parsed(body: str) -> Policy:
    return Policy.model_validate_json(body)


def active_policies(connection: sa.Connection, names: Iterable[str]) -> dict[str, Policy]:
    """The active versions of these policies by name.

    A name that was never put is missing, and so is one whose active version was put by a newer release of ours with
    rules that this one does not know: a fleet is upgraded machine by machine.
    """
    wanted = list(names)
    found: dict[str, Policy] = {}
    for row in connection.execute(_ACTIVE, {"names": wanted}) if wanted else ():
        with suppress(ValidationError):
            found[row.name] = _parsed(row.body)
    return found


class PolicyNames:
    """Whether items may ask for a policy, remembered for `keep_s` seconds; names are only ever added. Thread-safe."""

    def __init__(self, engine: sa.Engine, *, keep_s: float = 1.0) -> None:
        self._engine = engine
        self._keep_s = keep_s
        self._names: frozenset[str] = frozenset()
        self._read_at = -math.inf

    def __call__(self, name: str) -> bool:
        """Whether there is a policy of that name."""
        if name not in self._names and time.monotonic() - self._read_at >= self._keep_s:
            with self._engine.connect() as connection:
                self._names = frozenset(connection.scalars(sa.text("SELECT name FROM policies WHERE active")))
            self._read_at = time.monotonic()
        return name in self._names


def put_policy(engine: sa.Engine, policy: Policy) -> bool:
    """Store a version and make it the active one; False where it was stored already (it is active now all the same).

    Raises:
        TakenError: this version is stored with other rules.
    """
    key = {"name": policy.policy, "version": policy.version}
    known = sa.text("SELECT body::text FROM policies WHERE name = :name AND version = :version")
    rest = sa.text("UPDATE policies SET active = false WHERE name = :name AND version <> :version AND active")
    this = sa.text(
        """
        INSERT INTO policies (name, version, body, active) VALUES (:name, :version, CAST(:body AS jsonb), true)
        ON CONFLICT (name, version) DO UPDATE SET active = true
        """
    )
    with engine.begin() as connection:
        connection.execute(sa.text("LOCK TABLE policies IN SHARE ROW EXCLUSIVE MODE"))
        stored: str | None = connection.scalar(known, key)
        if stored is not None and _parsed(stored) != policy:
            raise TakenError(
                f"version {policy.version} of policy {policy.policy} is stored with other rules; "
                "give the changed policy another version"
            )
        connection.execute(rest, key)
        connection.execute(this, {**key, "body": policy.model_dump_json()})
    return stored is None


def stored_policies(engine: sa.Engine, name: str | None = None) -> list[StoredPolicy]:
    """Every stored version, by name, the newest version first."""
    statement = sa.text(
        """
        SELECT p.body::text AS body, p.active, p.created_at,
               ARRAY(SELECT tenant FROM tenant_policies t WHERE t.policy = p.name ORDER BY tenant) AS tenants
        FROM policies p WHERE CAST(:name AS text) IS NULL OR p.name = :name ORDER BY p.name, p.version DESC
        """
    )
    with engine.connect() as connection:
        rows = connection.execute(statement, {"name": name})
        return [StoredPolicy(_parsed(row.body), row.active, row.created_at, tuple(row.tenants)) for row in rows]


def stored_policy(engine: sa.Engine, name: str, version: int | None = None) -> StoredPolicy:
    """One version of a policy; without a version the active one.

    Raises:
        PolicyNotFoundError: there is none.
    """
    for found in stored_policies(engine, name):
        if found.policy.version == version or (version is None and found.active):
            return found
    what = name if version is None else f"{name}@{version}"
    raise PolicyNotFoundError(f"no policy {what} in the ledger")


def set_tenant_policy(engine: sa.Engine, tenant: str, name: str | None) -> None:
    """Make a policy the default of a tenant's items from now on; None: no policy.

    Raises:
        PolicyNotFoundError: there is no such policy.
    """
    if name is not None:
        stored_policy(engine, name)
    statement = (
        "DELETE FROM tenant_policies WHERE tenant = :tenant"
        if name is None
        else "INSERT INTO tenant_policies (tenant, policy) VALUES (:tenant, :policy) "
        "ON CONFLICT (tenant) DO UPDATE SET policy = excluded.policy"
    )
    with engine.begin() as connection:
        connection.execute(sa.text(statement), {"tenant": tenant, "policy": name})
