"""Small values by key on Redis, which may be lost, full or away without harm: callers go on without.

It knows nothing of what the values mean. A look-up makes one round trip, takes a bounded time and never raises a Redis
error; after a failure nothing is asked for a while. Values are written with what else a consumer writes.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, cast

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from infra.broker.address import parse_redis
from infra.log import get_logger
from infra.settings import Settings

TIMEOUT_S: Final = 0.25
"""For connecting, and again for an answer: a look-up delays a chunk by this much, and then none for a while."""
PAUSE_S: Final = 5.0
"""After a failure, and between two looks at how full Redis is."""
MEMORY_SHARE: Final = 0.5
"""Of Redis' memory limit: above it nothing is kept, so that a cache never fills up a broker."""
UNSAID_LIMIT: Final = 2 << 30
"""The limit, in bytes, that a Redis without one is taken to have."""

log = get_logger(__name__)


class Cache:
    """Values that are forgotten after `ttl_s` seconds. Thread-safe; a lost race costs a needless look at most."""

    def __init__(
        self, client: redis.Redis, *, namespace: str, ttl_s: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The client gives bytes, not text."""
        self._redis = client
        self._prefix = f"{namespace}:cache:".encode()
        self._ttl_s = ttl_s
        self._clock = clock
        self._asks_from = 0.0
        self._looks_from = 0.0
        self._has_room = True

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none or nobody to ask."""
        found: list[bytes | None] = [None] * len(keys)
        if keys and self._clock() >= self._asks_from:
            with self._forgiving("get"):
                found = cast("list[bytes | None]", self._redis.mget([self._name(key) for key in keys]))
        return found

    def put(self, pipe: Pipeline, values: Mapping[bytes, bytes]) -> None:
        """Keep values as part of a pipeline, if there is room for them."""
        if self._has_room and self._clock() >= self._asks_from:
            for key, value in values.items():
                pipe.set(self._name(key), value, ex=self._ttl_s)

    def look_for_room(self) -> None:
        """See how full Redis is, if that was last seen some seconds ago."""
        if self._clock() < max(self._looks_from, self._asks_from):
            return
        self._looks_from = self._clock() + PAUSE_S
        with self._forgiving("look"):
            memory = cast("dict[str, int]", self._redis.info("memory"))
            limit = memory.get("maxmemory") or UNSAID_LIMIT
            self._has_room = memory["used_memory"] <= MEMORY_SHARE * limit

    def _name(self, key: bytes) -> bytes:
        return self._prefix + base64.urlsafe_b64encode(key).rstrip(b"=")

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            self._asks_from = self._clock() + PAUSE_S
            log.warning("cache_away", during=what, error=f"{type(error).__name__}: {error}", pause_s=PAUSE_S)


def open_cache(redis_url: str, settings: Settings) -> Cache:
    """The cache of the configured namespace; Redis need not be there."""
    client = parse_redis(redis_url).client(
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    return Cache(client, namespace=settings.namespace, ttl_s=settings.cache_ttl_s)
