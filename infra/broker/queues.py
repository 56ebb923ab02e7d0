"""kombu's private layout on Redis, known by this module alone: queued and unacknowledged messages, the transport.

A queue is a list, pushed on the left, popped on the right. A message that was popped and not acknowledged is a field of
the hash `unacked` ([message, exchange, routing key], by delivery tag) and a member of the sorted set `unacked_index`.
kombu promises none of this, nor the methods that are overridden below: hence `kombu<5.8` in pyproject.toml. Raise
that limit after tests/integration/test_dead_letters.py and tests/chaos pass with the newer version.

Messages may have been written by anybody: nothing malformed breaks a caller.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, Self, cast

import redis
from kombu import Message
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual
from redis.client import Pipeline
from redis.connection import Connection as Socket

from infra import tracing
from infra.broker.app import CONTENT_TYPE, FINALIZE, FINALIZING, JUDGE, SETTLE, TRACEPARENT, VERDICTS, queue_of, to_json
from infra.log import get_logger
from infra.retry import FULL, retry
from schemas.messages import JudgeChunk, Lane, VerdictChunk

MALFORMED: Final = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError),
    *(DecodeError, ContentDisallowed),
)
"""Errors of reading malformed data; never a broken connection."""

# A message is taken off the list of the unacknowledged and queued in one step, unless somebody else did so before.
_REQUEUE: Final = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('RPUSH', KEYS[3], ARGV[2])
    return 1
end
return 0
"""

# A chunk's message is queued. One whose ordinal is lower than that of a message queued before (its producer was slow,
# or committed first and published second) is noted as late, with the highest ordinal before it: its place in the queue.
_PUBLISH: Final = """
if redis.call('LPUSH', KEYS[1], ARGV[1]) == 1 then redis.call('DEL', KEYS[3]) end
local last = redis.call('GET', KEYS[2]) or ''
if tonumber(ARGV[2]) < (tonumber(last) or 0) then
    redis.call('ZADD', KEYS[3], last, ARGV[3])
else
    redis.call('SET', KEYS[2], ARGV[2])
end
"""
_SLICE: Final = 256
"""Messages read at a time."""
_DIGITS: Final = 16
"""Numbers so long are nobody's: attempts stay small, and ordinals below what a Lua number can hold."""

log = get_logger(__name__)


class Task(NamedTuple):
    """A chunk's attempt as a message's task id names it: RUN/NUMBER/ATTEMPT, with a nonce RUN/NUMBER/ATTEMPT.NONCE."""

    chunk_id: str
    attempt: int = 1
    nonce: str = ""

    @property
    def run_id(self) -> str:
        """The chunk's run."""
        return self.chunk_id.rpartition("/")[0]

    @property
    def committed_id(self) -> str:
        """The chunk as it was committed: no other has this id, even after a failover that lost commits."""
        return f"{self.chunk_id}.{self.nonce}" if self.nonce else self.chunk_id

    def __str__(self) -> str:
        """The task id."""
        return f"{self.chunk_id}/{self.attempt}" + (f".{self.nonce}" if self.nonce else "")

    @classmethod
    def of(cls, chunk: JudgeChunk | VerdictChunk) -> Self:
        """The task of a chunk, or the one that its verdicts answer."""
        return cls(chunk.chunk_id, chunk.attempt, chunk.nonce or "")

    @classmethod
    def read(cls, headers: object) -> Self | None:
        """The task that a message's headers name, or None where no process of ours wrote them."""
        chunk_id, _, rest = task_id_of(headers).rpartition("/")
        attempt, _, nonce = rest.partition(".")
        if not chunk_id:
            return None
        counted = attempt.isascii() and attempt.isdecimal() and len(attempt) < _DIGITS
        return cls(chunk_id, int(attempt) if counted else 1, nonce)


class Lineup(NamedTuple):
    """How far a queue has been dispatched, by its chunks' ordinals.

    `next_ordinal` is that of the message that is delivered next (0: it has none), None for an empty queue; `late` are
    chunks that wait although their ordinals are lower. `published` is the highest ordinal that was ever queued.
    """

    next_ordinal: int | None
    late: list[str]
    published: int


class Queues:
    """The messages that wait on the broker, and the way onto a queue."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._redis = client
        self._prefix = prefix

    def transaction(self) -> Pipeline:
        """A pipeline whose commands all take effect, in their order, or none does; one round trip."""
        return self._redis.pipeline(transaction=True)

    def publish(self, chunk: JudgeChunk, pipe: Pipeline | None = None) -> None:
        """Enqueue a chunk on its guard's lane, by itself or as part of a pipeline.

        A note says where it comes out of the order of the ordinals.
        """
        queue, message = queue_of(chunk.guard, chunk.lane), judge_message(chunk)
        if chunk.ordinal:
            client = self._redis if pipe is None else pipe
            client.eval(_PUBLISH, 3, *self._lineup_keys(queue), message, str(chunk.ordinal), chunk.chunk_id)
        else:
            self.push(queue, message, pipe)

    def lineup(self, guard: str, lane: Lane) -> Lineup:
        """See how far a queue has been dispatched."""
        queue, last, late = self._lineup_keys(queue_of(guard, lane))
        with self.transaction() as pipe:
            pipe.lindex(queue, -1)
            pipe.get(last)
            pipe.zrange(late, 0, -1, withscores=True)
            raw, published, noted = pipe.execute()
        places = dict(cast("list[tuple[str, float]]", noted))
        highest = int(published) if published and published.isdecimal() and len(published) < _DIGITS else 0
        if raw is None:
            return Lineup(None, [], highest)
        ordinal = ordinal_of(raw)
        at = places.get(task_of(raw).rpartition("/")[0], ordinal)
        self._redis.zremrangebyscore(late, "-inf", f"({at:.0f}")  # what was queued before the next one is gone
        return Lineup(ordinal and int(at), [chunk_id for chunk_id, place in places.items() if place >= at], highest)

    def _lineup_keys(self, queue: str) -> tuple[str, str, str]:
        return (
            f"{self._prefix}{queue}",
            f"{self._prefix}board:published:{queue}",
            f"{self._prefix}board:late:{queue}",
        )

    def push(self, queue: str, message: str, pipe: Pipeline | None = None) -> None:
        """Enqueue a message, by itself or as part of a pipeline."""
        (self._redis if pipe is None else pipe).lpush(self._prefix + queue, message)

    def note(self, pipe: Pipeline, message: Message, tag: str) -> None:
        """Record a popped message as unacknowledged, as kombu's own QoS does."""
        delivery = message.delivery_info
        entry = json.dumps([message._raw, delivery["exchange"], delivery["routing_key"]])
        pipe.zadd(f"{self._prefix}unacked_index", {tag: time.time()})
        pipe.hset(f"{self._prefix}unacked", tag, entry)

    def acknowledge(self, pipe: Pipeline, tag: str) -> None:
        """Take a message off the record of the unacknowledged."""
        pipe.zrem(f"{self._prefix}unacked_index", tag)
        pipe.hdel(f"{self._prefix}unacked", tag)

    def length(self, guard: str, lane: Lane) -> int:
        """Chunks waiting in a queue (not those a consumer holds)."""
        return self._redis.llen(self._prefix + queue_of(guard, lane))

    def verdicts_waiting(self) -> int:
        """Judged chunks that no collector has taken yet."""
        return self._redis.llen(self._prefix + VERDICTS)

    def reports_waiting(self) -> int:
        """Requests for a run's report that no finalizer has taken yet."""
        return self._redis.llen(self._prefix + FINALIZING)

    def judged(self) -> set[str]:
        """Ids of the chunks whose verdicts no collector has taken yet."""
        return {chunk_id.rpartition("/")[0] for chunk_id in self._tasks_in(VERDICTS)}

    def queued(self, guard: str, lane: Lane) -> list[str]:
        """Ids of the chunks that wait in a queue, in no particular order."""
        return self._tasks_in(queue_of(guard, lane))

    def _tasks_in(self, queue: str) -> list[str]:
        """Task ids of a queue's messages, each without its last part."""
        found: list[str] = []
        for start in itertools.count(0, _SLICE):  # from the new end: what comes meanwhile moves none out of sight
            messages = cast("list[str]", self._redis.lrange(self._prefix + queue, start, start + _SLICE - 1))
            found += [task.rpartition("/")[0] for task in map(task_of, messages) if task]
            if len(messages) < _SLICE:
                return found
        return found

    def forget(self, guard: str, lane: Lane) -> None:
        """Drop everything that waits in a queue; the reconciler finds it again from the ledger."""
        self._redis.delete(self._prefix + queue_of(guard, lane))

    def oldest_enqueued_at(self, guard: str, lane: Lane) -> float | None:
        """Enqueue time of the message that will be delivered next, or None where none waits."""
        raw = cast("str | None", self._redis.lindex(self._prefix + queue_of(guard, lane), -1))
        return None if raw is None else enqueued_at(raw)

    def requeue(self, queue: str, chunk_ids: Sequence[str]) -> int:
        """Put unacknowledged messages of these chunks back where they are delivered next; returns how many it was."""
        if not chunk_ids:
            return 0
        unacked, index = f"{self._prefix}unacked", f"{self._prefix}unacked_index"
        wanted = frozenset(chunk_ids)
        found: dict[str, str] = {}
        for tag, entry in self._redis.hscan_iter(unacked, count=100):
            with suppress(*MALFORMED):
                message, _, routing_key = json.loads(entry)
                if routing_key == queue and str(message["headers"]["id"]).rpartition("/")[0] in wanted:
                    message["headers"]["redelivered"] = True
                    message["properties"]["delivery_info"]["redelivered"] = True
                    found[str(tag)] = json.dumps(message)
        requeued = [
            self._redis.eval(_REQUEUE, 3, unacked, index, self._prefix + queue, tag, message)
            for tag, message in found.items()
        ]
        return sum(map(int, cast("list[int]", requeued)))


def enqueued_at(message: str) -> float:
    """Enqueue time of a queued message; 0 for one that no process of ours wrote, so that it overtakes nothing."""
    try:
        at = float(json.loads(message)["headers"]["enqueued_at"])
    except MALFORMED:
        return 0.0
    return at if math.isfinite(at) else 0.0


def ordinal_of(message: str) -> int:
    """The ordinal of a queued message; 0 for one that has none, so that it overtakes nothing."""
    try:
        ordinal = json.loads(message)["headers"]["ordinal"]
    except MALFORMED:
        return 0
    return ordinal if type(ordinal) is int and 0 < ordinal < 10 ** (_DIGITS - 1) else 0


def task_of(message: str) -> str:
    """The task id of a queued message; empty for one that no process of ours wrote."""
    try:
        return task_id_of(json.loads(message)["headers"])
    except MALFORMED:
        return ""


def task_id_of(headers: Any) -> str:  # noqa: ANN401 - whatever was in the message
    """The task id among a message's headers, fit to be part of a key; empty where there is none."""
    found = str(headers["id"]) if isinstance(headers, dict) and "id" in headers else ""
    return found.encode(errors="replace").decode()  # JSON may spell a lone surrogate, which no key can hold


def task_message(task: str, body: str, *, queue: str, task_id: str, **headers: object) -> str:
    """A call of a task that takes one string, as Celery (protocol 2) and kombu's Redis transport would write it.

    User text stays out of the headers, which reach logs. Where traces are on, the current span's `traceparent` travels
    there; bodies are the same with and without.
    """
    traceparent = tracing.traceparent()
    if traceparent is not None:
        headers[TRACEPARENT] = traceparent
    call = to_json([[body], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return json.dumps(
        {
            "body": base64.b64encode(call.encode()).decode(),
            "content-type": CONTENT_TYPE,
            "content-encoding": "utf-8",
            "headers": {
                **{"lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "retries": 0},
                **{"eta": None, "expires": None, "group": None, "timelimit": [None, None], "ignore_result": True},
                **{"argsrepr": "-", "kwargsrepr": "-", **headers},
            },
            "properties": {
                **{"correlation_id": task_id, "reply_to": "", "delivery_mode": 2, "priority": 0},
                **{"delivery_info": {"exchange": "", "routing_key": queue}, "body_encoding": "base64"},
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def judge_message(chunk: JudgeChunk) -> str:
    """A chunk on its way to a worker; headers let the reconciler read its age and order without the body."""
    headers = {"enqueued_at": chunk.enqueued_at, "ordinal": chunk.ordinal}
    queue, task_id = queue_of(chunk.guard, chunk.lane), str(Task.of(chunk))
    return task_message(JUDGE, chunk.model_dump_json(), queue=queue, task_id=task_id, **headers)


def verdicts_message(chunk: VerdictChunk) -> str:
    """A chunk's verdicts on their way to the collector."""
    return task_message(SETTLE, chunk.model_dump_json(), queue=VERDICTS, task_id=f"{Task.of(chunk)}/v")


class Publisher:
    """Puts messages on queues, each in one round trip; waits while the broker is away or full."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    def judge(self, chunk: JudgeChunk) -> None:
        """Enqueue a chunk on its guard's lane."""
        retry(lambda: self._queues.publish(chunk))

    def settle(self, chunk: VerdictChunk) -> None:
        """Enqueue verdicts for the collector; returns only once the broker has them."""
        self._push(VERDICTS, verdicts_message(chunk))

    def finalize(self, run_id: str) -> None:
        """Ask for a run's metrics."""
        self._push(FINALIZING, task_message(FINALIZE, run_id, queue=FINALIZING, task_id=f"{run_id}/finalize"))

    def _push(self, queue: str, message: str) -> None:
        retry(lambda: self._queues.push(queue, message))


class Unacked(Protocol):
    """The record of unacknowledged messages, kept by the consumer: it goes with other commands in one round trip."""

    def note(self, message: Message, tag: str) -> None:
        """Record a message that was popped."""

    def may_take(self) -> bool:
        """False while this process could do nothing with another message."""

    def is_acknowledged(self, tag: str) -> bool:
        """True, once, for a message that was acknowledged with the publication of its verdicts."""


def vetting_transport(
    transport: type[Any], refuse: Callable[[str, str, object], None], unacked: Unacked | None = None
) -> type[Any]:
    """A kombu Redis transport whose channels hand what is no message to `refuse` (queue, reason, bytes)."""
    stock = transport.Channel
    parts: dict[str, object] = {"refuse": staticmethod(refuse)}
    if unacked is not None:
        parts["QoS"] = type("RecordingQoS", (_RecordingQoS, stock.QoS), {"unacked": unacked})
    channel = type("VettingChannel", (_VettingChannel, stock), parts)
    return type("VettingTransport", (transport,), {"Channel": channel})


class _RecordingQoS:
    """Mixed into kombu's QoS: leaves the record of the unacknowledged to `unacked`, and keeps count in memory."""

    unacked: Unacked

    def append(self, message: Message, delivery_tag: str) -> None:
        # In the record before anything else happens to it; while Redis is full that waits, or it would be lost.
        retry(lambda: self.unacked.note(message, delivery_tag), errors=FULL)
        virtual.QoS.append(self, message, delivery_tag)

    def can_consume(self) -> bool:
        return self.unacked.may_take() and bool(super().can_consume())  # type: ignore[misc]

    def ack(self, delivery_tag: str) -> None:
        if self.unacked.is_acknowledged(delivery_tag):
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)  # type: ignore[misc]


class _UnrecordedQoS(virtual.QoS):  # type: ignore[misc]
    """Unacknowledged messages that are in this process's memory alone (`ack_emulation: False`)."""

    def restore_unacked(self) -> list[Any]:
        """Put what is unacknowledged back onto its queue, as far as Redis answers; the reconciler finds the rest.

        Stock kombu asks again for each message, then writes what it could not put back into a file, texts and all.
        """
        self._flush()
        try:
            while self._delivered:
                self.channel._restore(self._delivered.popitem()[1])
        except (redis.RedisError, OSError) as error:
            log.warning("messages_not_given_back", error=type(error).__name__)
        self._delivered.clear()
        return []


class _VettingChannel:
    """Mixed into kombu's channel. Stock kombu breaks out of the event loop at what is no message, and loses it."""

    refuse: Callable[[str, str, object], None]
    ack_emulation: bool
    QoS: type[virtual.QoS]
    _kept: Any = None

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        if not self.ack_emulation:  # kombu has just chosen its own
            self.QoS = _UnrecordedQoS

    def _queue_bind(self, *args: object) -> None:
        bind = super()._queue_bind  # type: ignore[misc]
        retry(lambda: bind(*args), errors=FULL)

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - kombu's signature
        """One client a channel, where kombu makes one for each note and each acknowledgement.

        A client holds the pool and no connection, so that any thread may use it (docs/decisions/0026).
        """
        make: Callable[..., Any] = super()._create_client  # type: ignore[misc]
        if asynchronous:
            return make(asynchronous=True)
        if self._kept is None or self._kept.connection_pool is not self.pool:  # type: ignore[attr-defined]
            self._kept = make()
        return self._kept

    def _get_client(self) -> Callable[..., redis.Redis]:
        make: Callable[..., Any] = super()._get_client()  # type: ignore[misc]

        def vetting_client(*args: object, **options: object) -> redis.Redis:
            client = make(*args, **options)
            read = client.parse_response

            def parse_response(socket: Socket, command: str, **more: object) -> object:
                response = read(socket, command, **more)
                if command == "BRPOP" and response and not is_message(self, response[1]):
                    self.refuse(response[0].decode(), "not a message", response[1])
                    return None  # as if nothing had come
                return response

            client.parse_response = parse_response
            return cast("redis.Redis", client)

        return vetting_client


def is_message(channel: Any, raw: bytes) -> bool:  # noqa: ANN401 - kombu's channel, which has no types
    """True if kombu can make a message of it, and acknowledge that message later."""
    try:
        message = channel.Message(json.loads(raw), channel=channel)
        for name in (message.delivery_info["exchange"], message.delivery_info["routing_key"], message.delivery_tag):
            name.encode()  # raises where it is no text, or a lone surrogate, which no key can hold
    except MALFORMED:
        return False
    return True
