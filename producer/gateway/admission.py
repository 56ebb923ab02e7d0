"""Let a request in, or answer 429: by its tenant's rate, its tenant's share, and the age of the queue.

Three bounds, so that no tenant's flood starves the others: items per minute (counted in Redis, over all gateways),
items that a tenant may have waiting at a time (by the ledger), and the age of the guard's oldest live chunk. The last
two are looked at in the background, so that a request costs one round trip to Redis here: the count.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from infra.broker.address import parse_redis
from infra.broker.backpressure import oldest_age_s
from infra.fleet import AWAY
from infra.ledger.intake import pending_items
from infra.log import get_logger
from infra.servers.services import Services
from producer.gateway.middleware import GatewayMetrics
from producer.gateway.problems import ProblemError
from schemas.messages import Lane

_LOOK_EVERY_S: Final = 0.25
"""Between two looks at shares, which a flood uses up in a moment: a look per request would load what it protects."""
_LOOK_AT_AGES_EVERY_S: Final = 0.75
"""An age grows no faster than the clock, however many requests come."""
_IDLE_LOOK_EVERY_S: Final = 1.0
"""Between two looks while no request comes."""
_OLDEST_ANSWER_S: Final = 2.0
"""A request looks for itself where the background has not looked for so long, or never at its tenant."""
_REMEMBERED_S: Final = 600.0
"""A guard or tenant without a request for so long is looked at no more."""
_LONGEST_RETRY_S: Final = 60

log = get_logger(__name__)


@dataclass
class _Seen:
    """The last look at a guard's queue or a tenant's share, and the last request that asked for it."""

    value: float = 0.0
    looked_at: float = -math.inf
    asked_at: float = math.inf


class Admission:
    """Says yes, or no with 429. Thread-safe: `_lock` guards what was seen."""

    def __init__(
        self,
        services: Services,
        metrics: GatewayMetrics,
        run_ids: Callable[[], Mapping[str, Sequence[str]]],
        default_guard: str,
    ) -> None:
        self._services = services
        self._metrics = metrics
        self._run_ids = run_ids
        settings = services.settings
        self._rate = RateLimitItemPerMinute(settings.tenant_items_per_minute)
        client = parse_redis(services.redis_url).client(socket_timeout=2, socket_connect_timeout=2)
        # The limiter's library does not read its own address where it is given a pool.
        storage = RedisStorage(
            "redis://", connection_pool=client.connection_pool, key_prefix=f"{settings.namespace}:rate"
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._stop = threading.Event()
        self._ages = {default_guard: _Seen()}
        self._shares: dict[str, _Seen] = {}

    def start(self) -> None:
        """Begin to look in the background."""
        threading.Thread(target=self._run, name="admission", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def admit(self, tenant: str, guard: str, sizes: Sequence[int]) -> list[ProblemError | None]:
        """For each of some requests, by their numbers of items: None to let it in, or the 429 to answer."""
        settings = self._services.settings
        closed = None
        age_s = self._fresh(self._ages, guard, self._ages_s)
        if age_s > settings.live_high_water_age_s:
            closed = _refusal(
                "queue-full", f"the oldest queued item has waited for {age_s:.0f} s; try again later", age_s
            )
        elif (pending := self._fresh(self._shares, tenant, self._pending)) >= settings.tenant_pending_items:
            detail = f"{pending:,.0f} of your items are pending; the limit is {settings.tenant_pending_items:,}"
            closed = _refusal("share-used", detail, max(1, age_s))
        elif self._limiter.hit(self._rate, tenant, cost=sum(sizes)):
            return [None] * len(sizes)
        answers = [closed or self._over_rate(tenant, size) for size in sizes]
        for refusal in filter(None, answers):
            self._metrics.refused.labels(tenant, refusal.kind).inc()
        return answers

    def _over_rate(self, tenant: str, items: int) -> ProblemError | None:
        if self._limiter.hit(self._rate, tenant, cost=items):
            return None
        reset_s = self._limiter.get_window_stats(self._rate, tenant).reset_time - time.time()
        detail = f"more than {self._services.settings.tenant_items_per_minute:,} items a minute"
        return _refusal("rate-limited", detail, reset_s)

    def _fresh(self, seen: dict[str, _Seen], name: str, look: Callable[[Sequence[str]], Sequence[float]]) -> float:
        """The value seen last; seen now, where that is too long ago."""
        now = time.monotonic()
        with self._lock:
            one = seen.setdefault(name, _Seen())
            one.asked_at = now
        self._asked.set()
        if now > one.looked_at + _OLDEST_ANSWER_S:
            (one.value,) = look([name])
            one.looked_at = time.monotonic()
        return one.value

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self._asked.wait(_IDLE_LOOK_EVERY_S - _LOOK_EVERY_S)
            self._asked.clear()
            try:
                self._look_again(self._ages, self._ages_s, every_s=_LOOK_AT_AGES_EVERY_S)
                self._look_again(self._shares, self._pending, every_s=0.0)
            except AWAY as error:  # the next request meets it, and answers 503
                log.warning("admission_blind", error=type(error).__name__)

    def _look_again(
        self, seen: dict[str, _Seen], look: Callable[[Sequence[str]], Sequence[float]], *, every_s: float
    ) -> None:
        now = time.monotonic()
        with self._lock:
            for name in [name for name, one in seen.items() if now > one.asked_at + _REMEMBERED_S]:
                del seen[name]
            names = [name for name, one in seen.items() if now >= one.looked_at + every_s]
        for name, value in zip(names, look(names), strict=True):
            seen[name].value, seen[name].looked_at = value, time.monotonic()

    def _ages_s(self, guards: Sequence[str]) -> list[float]:
        return [oldest_age_s(self._services, self._services.coordination_at_once, guard, Lane.LIVE) for guard in guards]

    def _pending(self, tenants: Sequence[str]) -> list[float]:
        """Items that wait, of each tenant; one statement, however many there are."""
        runs = self._run_ids()
        pending = pending_items(self._services.engine, [run_id for name in tenants for run_id in runs.get(name, ())])
        return [sum(pending.get(run_id, 0) for run_id in runs.get(name, ())) for name in tenants]


def _refusal(kind: str, detail: str, retry_s: float) -> ProblemError:
    seconds = min(_LONGEST_RETRY_S, max(1, math.ceil(retry_s)))
    return ProblemError(429, kind, detail, headers={"Retry-After": str(seconds)})
