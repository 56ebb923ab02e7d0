"""The state that one gateway process shares among its requests, and the principal of each request.

Routes take the state as `Here`, and the principal as `Reader` or `Submitter`, which names the scope they demand.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Annotated, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import sqlalchemy as sa
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from infra.ledger import keys
from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.admission import Admission
from producer.gateway.middleware import GatewayMetrics
from producer.gateway.problems import ProblemError
from producer.intake.live import LiveIntake
from producer.webhooks.addresses import Allowed
from schemas.access import Role, Scope
from schemas.fleet import Announcement
from schemas.messages import Lane
from schemas.runs import RunSpec

P = ParamSpec("P")
T = TypeVar("T")

_CACHED_KEYS: Final = 10_000
_LONGEST_SECRET: Final = 200
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="libra-fleet"'}
"""RFC 6750 demands a parameter, and httplib2, which Google's clients use, fails without one."""

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


class Gateway:
    """The servers, the threads to use them in, admission, intake, and the principals of API keys.

    `knows_policy` says whether a policy of that name can be applied. Blocking work is done by `asyncio.to_thread`, in
    `threads`: as many as there are connections to the ledger is right, more would wait for one. Nothing here reaches
    a server before `open` or its first use.
    """

    def __init__(self, services: Services, default_guard: str, knows_policy: Callable[[str], bool]) -> None:
        settings = services.settings
        self.services: Final = services
        self.settings: Final[Settings] = settings
        self.default_guard: Final = default_guard
        self.knows_policy: Final = knows_policy
        self.webhooks_allowed: Final = Allowed.parse(settings.webhook_allow)
        self.metrics: Final = GatewayMetrics()
        self.threads: Final = ThreadPoolExecutor(settings.gateway_threads, thread_name_prefix="gateway")
        # No lock: read and written on the event loop alone.
        self._principals: dict[bytes, tuple[float, Principal | None]] = {}
        self.intake: Final = LiveIntake(
            services,
            self.threads,
            admit=lambda spec, sizes: self.admission.admit(str(spec.tenant), spec.guard, sizes),
            committed=self._count,
            gather_s=settings.gateway_gather_ms / 1_000,
            later=self._later,
        )
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Reach the servers and begin to follow verdicts and queues, so that a wrong setting shows at the start."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(self.threads)

        def reach_servers() -> None:
            _ = self.services.engine, self.services.publisher, self.services.coordination_at_once
            self.admission.start()
            self.intake.verdicts.start()

        await asyncio.to_thread(reach_servers)

    async def close(self) -> None:
        """Commit and enqueue what was let in, and follow no more."""
        await asyncio.get_running_loop().shutdown_default_executor()
        self.intake.verdicts.stop()
        self.admission.stop()

    @cached_property
    def admission(self) -> Admission:
        """Decides who is let in."""
        return Admission(self.services, self.metrics, self.intake.run_ids, self.default_guard)

    async def ask(self, question: Callable[Concatenate[sa.Engine, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function of the ledger in a thread."""
        return await asyncio.to_thread(question, self.services.engine, *args, **kwargs)

    async def principal(self, secret: str) -> Principal | None:
        """The principal of an API key; None where it is unknown or revoked.

        It is remembered for a few seconds: for so long a revoked key may still work.
        """
        if len(secret) > _LONGEST_SECRET:
            return None
        return await self._remembered(hashlib.sha256(secret.encode()).digest(), keys.find_key, secret)

    async def principal_of_key(self, key_id: str) -> Principal | None:
        """As `principal`, by the key's id: for requests that prove the key by a signature and do not show it."""
        return await self._remembered(b"id:" + key_id.encode(), keys.valid_key, key_id)

    async def _remembered(
        self, place: bytes, find: Callable[[sa.Engine, str], keys.ApiKey | None], given: str
    ) -> Principal | None:
        until, known = self._principals.get(place, (0.0, None))
        if time.monotonic() < until:
            return known
        found = await self.ask(find, given)
        principal = Principal(found.tenant, found.id, found.role) if found else None
        if len(self._principals) >= _CACHED_KEYS:
            self._principals.clear()
        self._principals[place] = (time.monotonic() + self.settings.gateway_key_cache_s, principal)
        return principal

    def announced(self) -> list[Announcement]:
        """The processes of the fleet. In a thread; does not wait for a broker that is away."""
        return self.services.coordination_at_once.presence.announced()

    def _count(self, spec: RunSpec, items: int) -> None:
        self.metrics.commit_items.observe(items)
        self.metrics.accepted.labels(str(spec.tenant), Lane.LIVE).inc(items)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have the event loop call something: it keeps no thread waiting."""
        assert self._loop is not None  # noqa: S101 - items wait after `open` alone
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, call)


async def gateway_of(request: Request) -> Gateway:
    """The gateway that serves this request; not a plain function, which would be called in a thread."""
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(gateway_of)]


async def authorised(gateway: Gateway, secret: str | None, scope: Scope, *, how: str) -> Principal:
    """The principal of an API key that has the scope; 401 or 403 where there is none. `how`: the way to send a key."""
    principal = await gateway.principal(secret) if secret else None
    if principal is None:
        why = "unknown or revoked API key" if secret else f"no API key: send {how}"
        raise ProblemError(401, "unauthorized", why, field="Authorization", headers=_CHALLENGE)
    if not principal.may(scope):
        raise ProblemError(403, "forbidden", f"a key of role {principal.role} may not {scope}")
    return principal


def requires(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency: the principal of a request whose key has the scope; 401 or 403 where there is none."""

    async def bearer(
        gateway: Here, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
    ) -> Principal:
        return await authorised(gateway, given.credentials if given else None, scope, how="Authorization: Bearer lk_…")

    return bearer


Reader = Annotated[Principal, Depends(requires(Scope.READ))]
Submitter = Annotated[Principal, Depends(requires(Scope.MODERATE))]
