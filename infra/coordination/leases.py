"""Leases on Redis: how often a chunk was delivered, which live consumer holds it, which of its items are suspects.

Times are the server's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
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

# A delivery beside a live holder's is no sign that a process died with the chunk: it is not counted.
_TAKE: Final = f"""
local now = redis.call('TIME')
local held_at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not held_at or tonumber(held_at) < now[1] - {HELD_FOR_S} or redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('INCR', KEYS[3])
end
redis.call('EXPIRE', KEYS[3], ARGV[2])
{_HOLD.replace("#ARGV", "1").replace("local now = redis.call('TIME')", "")}
return tonumber(redis.call('GET', KEYS[3]))
"""

# The delivery does not count: nothing was tried.
_HAND_ON: Final = """
local now = redis.call('TIME')
local at = now[1] + now[2] / 1000000
redis.call('HSETNX', KEYS[1], ARGV[1], string.format('%.3f', at))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('DECR', KEYS[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return string.format('%.3f', at - tonumber(redis.call('HGET', KEYS[1], ARGV[1])))
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
    """State of a chunk that was just delivered.

    By `seq`: how often a device process died of an item alone (0: in whose batch one died), and how often a worker
    ended while it judged that item alone. `returns`: how often a worker gave the chunk back because of an error.
    `passed_on`: workers of other fingerprints than its run's have passed it on.
    """

    deliveries: int
    settled: bool
    cancelled: bool
    device_deaths: Mapping[int, int] = MappingProxyType({})
    tries: Mapping[int, int] = MappingProxyType({})
    returns: int = 0
    passed_on: bool = False


_DEVICE, _WORKER, _RETURNS, _PASSED_ON = "device:", "worker:", "returns", "passed-on"


def _by_seq(noted: Mapping[str, str], kind: str) -> Mapping[int, int]:
    return {int(name.removeprefix(kind)): int(value) for name, value in noted.items() if name.startswith(kind)}


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
        pipe.get(f"{self._prefix}settled:{task.committed_id}")  # both written by `Notices`
        pipe.exists(f"{self._prefix}cancelled:{task.run_id}")
        pipe.hgetall(self._suspects(task.committed_id))
        keys = (*self._keys(queue, holder), self._deliveries(task.committed_id))
        pipe.eval(_TAKE, 3, *keys, task.chunk_id, self._remember_s)
        settled, cancelled, noted, deliveries = pipe.execute()[-4:]
        return Delivery(
            deliveries,
            int(settled or 0) >= task.attempt,
            bool(cancelled),
            device_deaths=_by_seq(noted, _DEVICE),
            tries=_by_seq(noted, _WORKER),
            returns=int(noted.get(_RETURNS, 0)),
            passed_on=_PASSED_ON in noted,
        )

    def _deliveries(self, committed_id: str) -> str:
        return f"{self._prefix}deliveries:{committed_id}"

    def _suspects(self, committed_id: str) -> str:
        return f"{self._prefix}suspects:{committed_id}"

    def uncount(self, committed_id: str, device_deaths: Mapping[int, int]) -> None:
        """Take a delivery back that ended because no device was there; keep what it learnt about the items."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.decr(self._deliveries(committed_id))
            pipe.expire(self._deliveries(committed_id), self._remember_s)
            if device_deaths:
                fields = [part for seq, deaths in device_deaths.items() for part in (f"{_DEVICE}{seq}", deaths)]
                pipe.hset(self._suspects(committed_id), items=fields)
            pipe.expire(self._suspects(committed_id), self._remember_s)
            pipe.execute()

    def count_return(self, committed_id: str) -> None:
        """Note that a chunk goes back because of an error; such a delivery counts here alone."""
        self.uncount(committed_id, {})
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(self._suspects(committed_id), _RETURNS, 1)
            pipe.expire(self._suspects(committed_id), self._remember_s)
            pipe.execute()

    def pass_on(self, committed_id: str) -> float:
        """Note that a worker of another fingerprint passes a chunk on; returns for how many seconds workers have."""
        keys = (self._suspects(committed_id), self._deliveries(committed_id))
        return float(cast("str", self._redis.eval(_HAND_ON, 2, *keys, _PASSED_ON, str(self._remember_s))))

    def take_over(self, committed_id: str) -> None:
        """Note that a worker of the right fingerprint has a chunk that others passed on."""
        self._redis.hdel(self._suspects(committed_id), _PASSED_ON)

    def begin_try(self, committed_id: str, seq: int, survived: int | None) -> None:
        """Note, before it happens, that an item is judged alone: if the worker ends now, it was this item.

        `survived`: the item before, which the worker survived.
        """
        suspects = self._suspects(committed_id)
        with self._redis.pipeline(transaction=True) as pipe:
            if survived is not None:
                pipe.hdel(suspects, f"{_WORKER}{survived}")
            pipe.hincrby(suspects, f"{_WORKER}{seq}", 1)
            pipe.expire(suspects, self._remember_s)
            pipe.execute()

    def end_try(self, committed_id: str, seq: int) -> None:
        """Note that the worker lives, though the item is not judged."""
        self._redis.hdel(self._suspects(committed_id), f"{_WORKER}{seq}")

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
