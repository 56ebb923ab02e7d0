"""Whether a request is let in: its tenant's rate and its tenant's share, then the age of the queue. Else 429.

Three bounds, so that nobody's flood starves the others: items per minute (counted in Redis, over all gateways), items
that a tenant may have waiting at a time (by the ledger), and the age of the guard's oldest live chunk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeVar

import redis
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from infra.broker.backpressure import oldest_age_s
from infra.coordination.store import CoordinationStore
from infra.ledger.submissions import pending_items
from infra.servers.services import Services
from producer.gateway.metrics import GatewayMetrics
from producer.gateway.problems import ProblemError
from schemas.messages import Lane

_LOOKED_FOR_S: Final = 0.25
"""How long an answer about a queue or a tenant's share holds: a question per request would load what it protects."""
_LONGEST_RETRY_S: Final = 60

T = TypeVar("T")


class Admission:
    """Says yes, or no with 429. Used in threads."""

    def __init__(
        self,
        services: Services,
        coordination: CoordinationStore,
        metrics: GatewayMetrics,
        run_ids: Callable[[str], list[str]],
    ) -> None:
        self._services = services
        self._coordination = coordination
        self._metrics = metrics
        self._run_ids = run_ids
        settings = services.settings
        self._rate = RateLimitItemPerMinute(settings.tenant_items_per_minute)
        url = services.redis_url
        pool = redis.ConnectionPool.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        storage = RedisStorage(_plain(url), connection_pool=pool, key_prefix=f"{settings.namespace}:rate")
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._looked: dict[Hashable, tuple[float, float]] = {}

    def admit(self, tenant: str, guard: str, sizes: Sequence[int]) -> list[ProblemError | None]:
        """For each of some requests, by their numbers of items: None to let it in, or the 429 to answer.

        Raises:
            redis.RedisError: Redis is away, so that nobody knows.
        """
        if closed := self._closed(tenant, guard):
            for _ in sizes:
                self._count(tenant, closed)
            return [closed] * len(sizes)
        if self._limiter.hit(self._rate, tenant, cost=sum(sizes)):
            return [None] * len(sizes)
        return [self._over_rate(tenant, size) for size in sizes]

    def _over_rate(self, tenant: str, items: int) -> ProblemError | None:
        if self._limiter.hit(self._rate, tenant, cost=items):
            return None
        reset_s = self._limiter.get_window_stats(self._rate, tenant).reset_time - time.time()
        detail = f"more than {self._services.settings.tenant_items_per_minute:,} items a minute"
        refusal = _refusal("rate-limited", detail, reset_s)
        self._count(tenant, refusal)
        return refusal

    def _closed(self, tenant: str, guard: str) -> ProblemError | None:
        """Why nothing of the tenant is let in now, if so."""
        settings = self._services.settings
        age_s = self._looked_at(("age", guard), lambda: self._age_s(guard))
        if age_s > settings.live_high_water_age_s:
            return _refusal("queue-full", f"the oldest item waits for {age_s:.0f} s; come back", age_s)
        pending = self._looked_at(("pending", tenant), lambda: self._pending(tenant))
        if pending >= settings.tenant_pending_items:
            detail = f"{pending:.0f} of your items wait; {settings.tenant_pending_items:,} may"
            return _refusal("share-used", detail, max(1, age_s))
        return None

    def _count(self, tenant: str, refusal: ProblemError) -> None:
        self._metrics.refused.labels(tenant, refusal.kind).inc()

    def _looked_at(self, what: Hashable, look: Callable[[], float]) -> float:
        until, seen = self._looked.get(what, (0.0, 0.0))
        if time.monotonic() >= until:
            seen = look()
            self._looked[what] = (time.monotonic() + _LOOKED_FOR_S, seen)
        return seen

    def _age_s(self, guard: str) -> float:
        return oldest_age_s(self._services, self._coordination, guard, Lane.LIVE)

    def _pending(self, tenant: str) -> float:
        return pending_items(self._services.engine, self._run_ids(tenant))


def _refusal(kind: str, detail: str, retry_s: float) -> ProblemError:
    seconds = min(_LONGEST_RETRY_S, max(1, math.ceil(retry_s)))
    return ProblemError(429, kind, detail, headers={"Retry-After": str(seconds)})


def _plain(redis_url: str) -> str:
    """The URL in the words of the limiter's library, which has another scheme for Unix sockets."""
    return redis_url.replace("unix://", "redis+unix://", 1) if redis_url.startswith("unix://") else redis_url
