"""From the Authorization header to a principal, and the scope that a route demands of one."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, NamedTuple

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from infra.ledger import keys
from infra.servers.services import Services
from producer.gateway.problems import ProblemError
from schemas.access import Role, Scope

_CACHED_KEYS: Final = 10_000
_LONGEST_SECRET: Final = 200

_bearer = HTTPBearer(auto_error=False, description="An API key of `libra keys create`.")


class Principal(NamedTuple):
    """The tenant that a key speaks for, and its role."""

    tenant: str
    key_id: str
    role: Role

    def may(self, scope: Scope) -> bool:
        """True if the key's role has the scope."""
        return scope in self.role.scopes

    def sees(self, tenant: str) -> bool:
        """True if what belongs to a tenant may be shown."""
        return self.tenant == tenant or self.may(Scope.ADMIN)


class Keys:
    """API keys, looked up in the ledger and remembered for a few seconds (so long a revoked key may still work)."""

    def __init__(self, services: Services, *, cache_s: float) -> None:
        self._services = services
        self._cache_s = cache_s
        # No lock: read and written on the event loop alone.
        self._known: dict[bytes, tuple[float, Principal | None]] = {}

    async def principal(self, secret: str) -> Principal | None:
        """The principal of a key; None where it is unknown or revoked."""
        if len(secret) > _LONGEST_SECRET:
            return None
        digest = hashlib.sha256(secret.encode()).digest()
        until, known = self._known.get(digest, (0.0, None))
        if time.monotonic() < until:
            return known
        found = await asyncio.to_thread(lambda: keys.find_key(self._services.engine, secret))
        principal = Principal(found.tenant, found.id, found.role) if found else None
        if len(self._known) >= _CACHED_KEYS:
            self._known.clear()
        self._known[digest] = (time.monotonic() + self._cache_s, principal)
        return principal


def requires(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency: the principal of a request whose key has the scope.

    Raises:
        ProblemError: 401 without a valid key, 403 where its role lacks the scope.
    """

    async def authorised(
        request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
    ) -> Principal:
        keys_here: Keys = request.app.state.gateway.keys
        principal = await keys_here.principal(given.credentials) if given else None
        if principal is None:
            why = "unknown or revoked API key" if given else "no API key: send Authorization: Bearer lk_…"
            raise ProblemError(401, "unauthorized", why, field="Authorization", headers={"WWW-Authenticate": "Bearer"})
        if not principal.may(scope):
            raise ProblemError(403, "forbidden", f"a key of role {principal.role} may not {scope}")
        return principal

    return authorised


Reader = Annotated[Principal, Depends(requires(Scope.READ))]
Submitter = Annotated[Principal, Depends(requires(Scope.MODERATE))]
