"""Leases on Redis: how often a chunk was delivered and which live consumer holds it. Times are the server's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

import redis
from redis.client import Pipeline

from infra.broker.queues import Task

HELD_FOR_S: Final = 6
"""A chunk counts as held this long after its consumer last said so (it says so every third of that)."""

_HOLD: Final = """
local now = redis.call('TIME')
local at = now[1] + now[2] / 1000000
for i = 1, #ARGV do
    redis.call('ZADD', KEYS[1], at, ARGV[i])
    redis.call('SADD', KEYS[2], ARGV[i])
end
redis.call('EXPIRE', KEYS[1], 3600)
redis.call('EXPIRE', KEYS[2], 3600)
"""

_HELD: Final = """
local now = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now[1] - tonumber(ARGV[1]))
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""

_DROP: Final = """
local chunks = redis.call('SMEMBERS', KEYS[2])
for i = 1, #chunks do redis.call('ZREM', KEYS[1], chunks[i]) end
redis.call('DEL', KEYS[2])
return chunks
"""


class Delivery(NamedTuple):
    """State of a chunk that was just delivered."""

    deliveries: int
    settled: bool
    cancelled: bool


class Leases:
    """Deliveries are counted per chunk, leases kept per queue and per holder (one consumer process)."""

    def __init__(self, client: redis.Redis, prefix: str, *, remember_s: int) -> None:
        self._redis = client
        self._prefix = prefix
        self._remember_s = remember_s

    def take(self, pipe: Pipeline, task: Task, queue: str, holder: str) -> Delivery:
        """Count a delivery before its inference starts, so that the death of a whole machine counts as well.

        This executes the pipeline, with what is in it already. A chunk that settled before this attempt was made
        has been found pending since then: the ledger lost its verdicts, and the note of them does not count.
        """
        attempts = f"{self._prefix}deliveries:{task.committed_id}"
        pipe.incr(attempts)
        pipe.expire(attempts, self._remember_s)
        pipe.get(f"{self._prefix}settled:{task.committed_id}")  # both written by `Notices`
        pipe.exists(f"{self._prefix}cancelled:{task.run_id}")
        pipe.eval(_HOLD, 2, *self._keys(queue, holder), task.chunk_id)
        deliveries, _, settled, cancelled, _ = pipe.execute()[-5:]
        return Delivery(deliveries, int(settled or 0) >= task.attempt, bool(cancelled))

    def _keys(self, queue: str, holder: str) -> tuple[str, str]:
        return f"{self._prefix}held:{queue}", f"{self._prefix}hand:{holder}"

    def hold(self, queue: str, holder: str, chunk_ids: Sequence[str]) -> None:
        """Renew the leases on chunks that a consumer still works on."""
        if chunk_ids:
            self._redis.eval(_HOLD, 2, *self._keys(queue, holder), *chunk_ids)

    def release(self, pipe: Pipeline, queue: str, holder: str, chunk_id: str) -> None:
        """End the lease on a chunk, as part of a pipeline."""
        held, hand = self._keys(queue, holder)
        pipe.zrem(held, chunk_id)
        pipe.srem(hand, chunk_id)

    def drop(self, queue: str, holder: str) -> list[str]:
        """End every lease of a dead holder; returns the ids of its chunks."""
        return cast("list[str]", self._redis.eval(_DROP, 2, *self._keys(queue, holder)))

    def held(self, queue: str) -> list[str]:
        """Ids of the chunks that a live consumer works on."""
        return cast("list[str]", self._redis.eval(*self.held_query(queue)))

    def held_query(self, queue: str) -> tuple[str, int, str, str]:
        """The script call behind `held`, for a pipeline that asks other things as well."""
        return _HELD, 1, f"{self._prefix}held:{queue}", str(HELD_FOR_S)
