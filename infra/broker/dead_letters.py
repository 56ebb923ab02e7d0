"""The dead-letter queue, and a Celery consumer that puts there what it cannot read.

Stock Celery acknowledges an unreadable message and prints its body to its log, where user text does not belong;
what is not even a message is met in `infra.broker.queues`. Each is put aside while it is still in hand.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, cast

import redis
from celery.worker.consumer import Consumer
from kombu import Connection, Message

from infra.broker.queues import MALFORMED, Publisher, Unacked, vetting_transport
from infra.log import get_logger
from infra.retry import retry
from schemas.messages import VerdictChunk, decode_chunk

_KEPT: Final = 10_000
_KEPT_BYTES: Final = 256 * 2**20
"""Of memory, about, for each of the two: this broker evicts nothing, so that what is kept for ever would fill it up."""
_KEPT_S: Final = 90 * 86_400.0

log = get_logger(__name__)


class KeptVerdicts(NamedTuple):
    """Verdicts that could not be settled, with the reason."""

    reason: str
    chunk: VerdictChunk


class DeadLetters:
    """Messages that no reader of this version understands: nothing is dropped silently.

    Verdicts that could not be settled are kept by themselves, by chunk: their items are judged, so nobody judges them
    again, and once the reason is gone they are put back on their queue.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._redis = client
        self.key = f"{prefix}parked"
        self.verdicts_key = f"{prefix}parked-verdicts"

    def put(self, queue: str, reason: str, body: str) -> None:
        """Keep a message for 90 days; beyond ten thousand messages, or 256 MiB, the oldest go first."""
        entry = {"queue": queue, "reason": reason, "body": body, "at": time.time()}
        retry(lambda: self._redis.lpush(self.key, json.dumps(entry, ensure_ascii=False)))
        dropped = 0
        while retry(self._oldest_goes):
            retry(lambda: self._redis.rpop(self.key))
            dropped += 1
        if dropped:
            log.error("parked_messages_dropped", messages=dropped)

    def _oldest_goes(self) -> bool:
        count = self._redis.llen(self.key)
        if count < 2:  # the newest stays, whatever its size
            return False
        if count > _KEPT or self._memory(self.key) > _KEPT_BYTES:
            return True
        oldest = cast("str | None", self._redis.lindex(self.key, -1))
        # An entry of an older version has no time: it goes by number and size alone.
        return oldest is not None and json.loads(oldest).get("at", math.inf) < time.time() - _KEPT_S

    def _memory(self, key: str) -> int:
        """Bytes of memory that a key takes, estimated by the server from some of its entries."""
        return self._redis.memory_usage(key) or 0

    def keep_verdicts(self, chunk: VerdictChunk, reason: str) -> bool:
        """Keep verdicts until somebody puts them back; False where ten thousand chunks, or 256 MiB, are kept already.

        None of them goes by itself: their items are judged and wait for them.
        """
        body = chunk.model_copy(update={"failures": 0}).model_dump_json()
        entry = json.dumps({"reason": reason, "body": body}, ensure_ascii=False)
        if retry(lambda: self._redis.hlen(self.verdicts_key)) >= _KEPT:
            return False
        if retry(lambda: self._memory(self.verdicts_key)) >= _KEPT_BYTES:
            return False
        retry(lambda: self._redis.hset(self.verdicts_key, chunk.chunk_id, entry))
        return True

    def chunks_kept(self) -> set[str]:
        """Ids of the chunks whose verdicts are kept."""
        return set(cast("list[str]", self._redis.hkeys(self.verdicts_key)))

    def kept_verdicts(self) -> Iterator[KeptVerdicts]:
        """The verdicts that are kept, one chunk at a time, in no particular order."""
        for _, entry in self._redis.hscan_iter(self.verdicts_key, count=100):
            found = json.loads(entry)
            yield KeptVerdicts(found["reason"], decode_chunk(VerdictChunk, found["body"]))

    def put_back(self, publisher: Publisher) -> int:
        """Deliver all kept verdicts again; returns how many chunks it was."""
        kept = list(self.kept_verdicts())
        for verdicts in kept:
            publisher.settle(verdicts.chunk)
            self._redis.hdel(self.verdicts_key, verdicts.chunk.chunk_id)  # only now: it is on the queue
        return len(kept)

    def newest_first(self) -> list[dict[str, Any]]:
        """Queue, reason and body of each message, and the time when it was put here (epoch seconds)."""
        return [json.loads(entry) for entry in cast("list[str]", self._redis.lrange(self.key, 0, -1))]


Put = Callable[[str, str, str], None]
"""Takes queue, reason and body (base64 where it is not text)."""


def dead_letter_consumer(put: Put, unacked: Unacked | None = None) -> type[Any]:
    """A Consumer class for `app.Worker(consumer_cls=...)` that hands unreadable messages to `put`."""
    return type("DeadLetterConsumer", (_DeadLetterConsumer,), {"put": staticmethod(put), "unacked": unacked})


class _DeadLetterConsumer(Consumer):  # type: ignore[misc]
    put: Put
    unacked: Unacked | None

    def connection_for_read(self, heartbeat: float | None = None) -> Connection:
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        connection.transport_cls = vetting_transport(connection.get_transport_cls(), self._put_aside, self.unacked)
        return self.ensure_connected(connection)

    def create_task_handler(self, *args: object, **options: object) -> Callable[[Message], None]:
        handle = super().create_task_handler(*args, **options)

        def guarded(message: Message) -> None:
            try:
                if message.headers["task"] in self.strategies:
                    # All our tasks take one string. Other arguments would fail in the pool, where some are rejected
                    # without a word and some are never acknowledged.
                    (body,), options, _ = message.payload
                    if not isinstance(body, str) or options:
                        raise TypeError("one string is expected")
                handle(message)
            except MALFORMED as error:
                self._refuse(message, f"malformed task message: {type(error).__name__}")

        return guarded

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._refuse(message, f"undecodable: {type(exc).__name__}")

    def on_unknown_message(self, body: object, message: Message) -> None:  # noqa: ARG002 - Celery's signature
        self._refuse(message, "not a task message")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._refuse(message, "unknown task")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._refuse(message, f"malformed task message: {type(exc).__name__}")

    def _refuse(self, message: Message, reason: str) -> None:
        self._put_aside(str((message.delivery_info or {}).get("routing_key")), reason, message.body)
        message.ack()  # only now: it is kept

    def _put_aside(self, queue: str, reason: str, body: object) -> None:
        log.error("message_parked", queue=queue, reason=reason)
        try:
            text = body.decode() if isinstance(body, bytes) else str(body)
        except UnicodeDecodeError:
            text = base64.b64encode(cast("bytes", body)).decode()
        self.put(queue, reason, text)
