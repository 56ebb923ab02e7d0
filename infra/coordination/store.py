"""The notice board on Redis: who works, who holds which chunk, what has settled, how long the queues are.

Everything here may be lost without harm: it saves device time and shortens waits, but the promise that
each item settles exactly once rests on the ledger alone. Times are the Redis server's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, cast

import redis
from redis.client import PubSub

from infra.broker.app import FINALIZING, VERDICTS, connect_redis, queue_of
from infra.broker.unacked import enqueued_at, requeue, task_of
from infra.settings import Settings
from schemas.fleet import Announcement
from schemas.messages import Lane, VerdictChunk

HELD_FOR_S: Final = 6
"""A chunk counts as held this long after its consumer last said so (it says so every third of that)."""

_WORKER_TTL_S: Final = 15
_PARKED_KEPT: Final = 10_000
_COUNTS_KEPT_S: Final = 30 * 86_400

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
    """What the board knows of a chunk that was just delivered."""

    deliveries: int
    settled: bool
    cancelled: bool


class CoordinationStore:
    """All keys share the namespace prefix and none outlives its use."""

    def __init__(self, client: redis.Redis, *, namespace: str, remember_s: int) -> None:
        self._redis = client
        self._prefix = f"{namespace}:"
        self._remember_s = remember_s

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(("board", *parts))

    def take(self, chunk_id: str, run_id: str, queue: str, holder: str) -> Delivery:
        """Note a delivery before its inference starts, so that the death of a whole machine counts as well."""
        attempts = self._key("deliveries", chunk_id)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.incr(attempts)
            pipe.expire(attempts, self._remember_s)
            pipe.exists(self._key("settled", chunk_id))
            pipe.exists(self._key("cancelled", run_id))
            pipe.eval(_HOLD, 2, *self._hand(queue, holder), chunk_id)
            deliveries, _, settled, cancelled, _ = pipe.execute()
        return Delivery(deliveries, bool(settled), bool(cancelled))

    def _hand(self, queue: str, holder: str) -> tuple[str, str]:
        return self._key("held", queue), self._key("hand", holder)

    def hold(self, queue: str, holder: str, chunk_ids: Sequence[str]) -> None:
        """Say that a consumer still works on these chunks."""
        if chunk_ids:
            self._redis.eval(_HOLD, 2, *self._hand(queue, holder), *chunk_ids)

    def release(self, queue: str, holder: str, chunk_id: str) -> None:
        """The chunk's verdicts are published."""
        held, hand = self._hand(queue, holder)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(held, chunk_id)
            pipe.srem(hand, chunk_id)
            pipe.execute()

    def give_back(self, queue: str, holder: str) -> int:
        """Put what a dead consumer held back on its queue, where it is next; returns how many chunks it was.

        Call it only when the consumer is surely dead, or its chunks are judged twice.
        """
        chunk_ids = cast("list[str]", self._redis.eval(_DROP, 2, *self._hand(queue, holder)))
        return requeue(self._redis, self._prefix, queue, chunk_ids)

    def held(self, queue: str) -> list[str]:
        """Chunks that a live consumer works on."""
        return cast("list[str]", self._redis.eval(_HELD, 1, self._key("held", queue), str(HELD_FOR_S)))

    def note_settled(self, chunks: Sequence[VerdictChunk]) -> None:
        """Tell those who wait, and let redelivered copies of the chunks be skipped."""
        with self._redis.pipeline(transaction=False) as pipe:
            for chunk in chunks:
                pipe.set(self._key("settled", chunk.chunk_id), 1, ex=self._remember_s)
                pipe.delete(self._key("deliveries", chunk.chunk_id))
                pipe.publish(self._key("run", chunk.run_id), json.dumps([verdict.seq for verdict in chunk.verdicts]))
            pipe.execute()

    def count(self, counts: Mapping[str, float]) -> None:
        """Add to the fleet's counts, by field."""
        if not counts:
            return
        key = self._key("counts")
        with self._redis.pipeline(transaction=False) as pipe:
            for field, count in counts.items():
                pipe.hincrbyfloat(key, field, count)
            pipe.expire(key, _COUNTS_KEPT_S)
            pipe.execute()

    def counts(self) -> dict[str, str]:
        """The fleet's counts so far; from zero again where Redis was lost, or after a month without one."""
        return cast("dict[str, str]", self._redis.hgetall(self._key("counts")))

    def note_ended(self, run_id: str) -> None:
        """The run has its report."""
        self._redis.publish(self._key("run", run_id), "[]")

    def note_cancelled(self, run_id: str) -> None:
        """Let workers skip what is still queued of a run."""
        self._redis.set(self._key("cancelled", run_id), 1, ex=self._remember_s)

    @contextmanager
    def watching(self, run_id: str) -> Iterator[PubSub]:
        """A subscription to what settles in a run: JSON lists of item numbers, empty when the run has ended."""
        channel: PubSub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        channel.subscribe(self._key("run", run_id))
        try:
            yield channel
        finally:
            channel.close()

    @contextmanager
    def watching_all(self) -> Iterator[PubSub]:
        """A subscription to what settles in any run; `run_of` says in which."""
        channel: PubSub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        channel.psubscribe(self._key("run", "*"))
        try:
            yield channel
        finally:
            channel.close()

    def run_of(self, channel_name: str) -> str:
        """The run that a message of `watching_all` is about."""
        return channel_name.removeprefix(self._key("run", ""))

    def queue_length(self, guard: str, lane: Lane) -> int:
        """Chunks waiting in a queue (not those a consumer holds)."""
        return self._redis.llen(self._prefix + queue_of(guard, lane))

    def verdicts_waiting(self) -> int:
        """Judged chunks that no collector has taken yet."""
        return self._redis.llen(self._prefix + VERDICTS)

    def finalizing_waiting(self) -> int:
        """Runs whose metrics no collector has begun to compute."""
        return self._redis.llen(self._prefix + FINALIZING)

    def judged(self) -> set[str]:
        """Ids of the chunks whose verdicts no collector has taken yet."""
        return {chunk_id.rpartition("/")[0] for chunk_id in self._tasks_in(VERDICTS)}

    def queued(self, guard: str, lane: Lane) -> list[str]:
        """Ids of the chunks that wait in a queue, in no particular order."""
        return self._tasks_in(queue_of(guard, lane))

    def _tasks_in(self, queue: str) -> list[str]:
        """Task ids of a queue's messages, each without its last part."""
        messages = cast("list[str]", self._redis.lrange(self._prefix + queue, 0, -1))
        return [task.rpartition("/")[0] for task in map(task_of, messages) if task]

    def forget_queue(self, guard: str, lane: Lane) -> None:
        """Drop everything that waits in a queue; the reconciler finds it again from the ledger."""
        self._redis.delete(self._prefix + queue_of(guard, lane))

    def oldest_enqueued_at(self, guard: str, lane: Lane) -> float | None:
        """Enqueue time of the message that will be delivered next, or None where none waits."""
        raw = cast("str | None", self._redis.lindex(self._prefix + queue_of(guard, lane), -1))
        return None if raw is None else enqueued_at(raw)

    def announce(self, process: Announcement) -> None:
        """Keep a process on the list; it vanishes when this is not repeated."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._key("worker", process.id), process.to_wire(), ex=_WORKER_TTL_S)
            pipe.sadd(self._key("workers"), process.id)
            pipe.expire(self._key("workers"), _WORKER_TTL_S)
            pipe.execute()

    def withdraw(self, process_id: str) -> None:
        """Take a process off the list at once."""
        self._redis.delete(self._key("worker", process_id))

    def announced(self) -> list[Announcement]:
        """Every process that is announced and alive; not those of a version that this one cannot read."""
        # A list of their names: a scan would walk over every key of a Redis that also holds a cache.
        names = sorted(cast("set[str]", self._redis.smembers(self._key("workers"))))
        found = cast(
            "list[str | None]", self._redis.mget([self._key("worker", name) for name in names]) if names else []
        )
        gone = [name for name, announcement in zip(names, found, strict=True) if announcement is None]
        if gone:
            self._redis.srem(self._key("workers"), *gone)
        return [process for process in map(Announcement.from_wire, filter(None, found)) if process]

    def park(self, queue: str, reason: str, body: str) -> None:
        """Set aside a message that cannot be read here; nothing is dropped silently."""
        key = self._key("parked")
        self._redis.lpush(key, json.dumps({"queue": queue, "reason": reason, "body": body}, ensure_ascii=False))
        self._redis.ltrim(key, 0, _PARKED_KEPT - 1)

    def parked_count(self) -> int:
        """How many messages are set aside."""
        return self._redis.llen(self._key("parked"))

    def parked(self) -> list[dict[str, str]]:
        """Messages set aside, newest first."""
        return [json.loads(entry) for entry in cast("list[str]", self._redis.lrange(self._key("parked"), 0, -1))]


def open_coordination(redis_url: str, settings: Settings) -> CoordinationStore:
    """The board of the configured namespace.

    Raises:
        ServerError: Redis does not answer in time.
    """
    client = connect_redis(redis_url, wait_s=settings.wait_for_servers_s)
    return CoordinationStore(client, namespace=settings.namespace, remember_s=2 * settings.visibility_timeout_s)
