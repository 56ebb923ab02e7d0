"""A consumer's chunks between their queue and their verdicts, in two round trips to Redis each.

When a message is popped, one transaction records it as unacknowledged, counts the delivery and takes the lease. When
its chunk is judged, another one publishes the verdicts, keeps what the cache may keep, ends the lease and acknowledges
the message: all of it or nothing, so that no message is acknowledged whose verdicts are not published.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kombu import Message

from infra.broker.app import VERDICTS
from infra.broker.queues import Task, verdicts_message
from infra.coordination.cache import Cache
from infra.coordination.leases import HELD_FOR_S, Delivery
from infra.coordination.store import CoordinationStore
from infra.log import get_logger
from infra.retry import ignore_redis_errors, retry
from schemas.messages import JudgeChunk, VerdictChunk

log = get_logger(__name__)


def holder_of(worker_id: str, pid: int) -> str:
    """The name under which one consumer process of a worker holds leases; its successor has another."""
    return f"{worker_id}/{pid}"


class Deliveries:
    """Chunks that this process has in hand. Thread-safe: Celery's loop notes them, its pool does the rest."""

    def __init__(
        self, coordination: CoordinationStore, *, queue: str, worker_id: str, cache: Cache | None = None
    ) -> None:
        self._queues = coordination.queues
        self._leases = coordination.leases
        self._queue = queue
        self._holder = holder_of(worker_id, os.getpid())
        self._cache = cache
        self._noted: dict[str, Delivery] = {}
        self._acknowledged: set[str] = set()
        self._in_hand: set[str] = set()
        self._lock = threading.Lock()

    def note(self, message: Message, tag: str) -> None:
        """Record a popped message and, where it is a chunk's, take the lease: what kombu calls for each message."""
        task = Task.read(message.headers)
        with self._queues.transaction() as pipe:
            self._queues.note(pipe, message, tag)
            if task is None:
                pipe.execute()  # no process of ours wrote it; the task handler refuses it
                return
            self._noted[tag] = self._leases.take(pipe, task, self._queue, self._holder)

    def is_acknowledged(self, tag: str) -> bool:
        """True, once, for a message that `finish` acknowledged."""
        self._noted.pop(tag, None)
        if tag not in self._acknowledged:
            return False
        self._acknowledged.discard(tag)
        return True

    @contextmanager
    def in_hand(self, chunk: JudgeChunk, tag: str | None) -> Iterator[Delivery]:
        """Keep the lease while a chunk is judged, and end it if that fails."""
        noted = self._noted.pop(tag, None) if tag else None

        def take() -> Delivery:
            with self._queues.transaction() as pipe:
                return self._leases.take(pipe, Task.of(chunk), self._queue, self._holder)

        delivery = noted or retry(take)  # a message that came without a note, as in tests, is counted here
        with self._lock:
            self._in_hand.add(chunk.chunk_id)
        try:
            yield delivery
        finally:
            with self._lock:
                unfinished = chunk.chunk_id in self._in_hand
                self._in_hand.discard(chunk.chunk_id)
            if unfinished:
                with ignore_redis_errors("release"), self._queues.transaction() as pipe:
                    self._leases.release(pipe, self._queue, self._holder, chunk.chunk_id)
                    pipe.execute()

    def finish(self, verdicts: VerdictChunk, tag: str | None, fresh: Mapping[bytes, bytes]) -> None:
        """Publish a chunk's verdicts and be done with its message; waits while the broker is away or full."""
        message = verdicts_message(verdicts)

        def publish() -> None:
            with self._queues.transaction() as pipe:
                self._queues.push(VERDICTS, message, pipe)
                if self._cache is not None:
                    self._cache.put(pipe, fresh)
                self._leases.release(pipe, self._queue, self._holder, verdicts.chunk_id)
                if tag is not None:
                    self._queues.acknowledge(pipe, tag)
                pipe.execute()

        retry(publish)
        if tag is not None:
            self._acknowledged.add(tag)  # so that Celery's own acknowledgement, which comes next, asks nothing of Redis
        with self._lock:
            self._in_hand.discard(verdicts.chunk_id)

    def keep(self, stop: threading.Event) -> None:
        """Renew the leases every few seconds, so that no reconciler takes for lost what is in hand, until stopped."""
        while not stop.is_set():
            with self._lock:
                chunk_ids = list(self._in_hand)
            try:
                self._leases.hold(self._queue, self._holder, chunk_ids)
            except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away, the loop must go on
                log.warning("hold_failed", error=str(error))
            if self._cache is not None:
                self._cache.look_for_room()  # here, where no chunk waits for it
            stop.wait(HELD_FOR_S / 3)
