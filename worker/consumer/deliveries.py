"""A consumer's chunks between their queue and their verdicts, in two round trips to Redis each.

When a message is popped, one transaction records it as unacknowledged, counts the delivery and takes the lease. When
its chunk is judged, another one publishes the verdicts, keeps what the cache may keep, ends the lease and acknowledges
the message: all of it or nothing, so that no message is acknowledged whose verdicts are not published.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from kombu import Message
from redis.client import Pipeline

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
        self,
        coordination: CoordinationStore,
        *,
        queue: str,
        worker_id: str,
        longest_hold_s: float = math.inf,
        cache: Cache | None = None,
        may_take: Callable[[], bool] = lambda: True,
    ) -> None:
        """`longest_hold_s`: how long a chunk without progress is held. `may_take` says if messages are wanted."""
        self.may_take = may_take
        self._longest_hold_s = longest_hold_s
        self._queues = coordination.queues
        self._leases = coordination.leases
        self._queue = queue
        self._holder = holder_of(worker_id, os.getpid())
        self._cache = cache
        self._noted: dict[str, Delivery] = {}
        self._acknowledged: set[str] = set()
        self._in_hand: dict[str, float] = {}
        """The chunks that are judged now, and when each last made progress (CLOCK_MONOTONIC seconds)."""
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
            self._in_hand[chunk.chunk_id] = time.monotonic()
        try:
            yield delivery
        finally:
            with self._lock:
                unfinished = self._in_hand.pop(chunk.chunk_id, None) is not None
            if unfinished:
                with ignore_redis_errors("release"), self._queues.transaction() as pipe:
                    self._leases.release(pipe, self._queue, self._holder, chunk.chunk_id)
                    pipe.execute()

    def note_progress(self, chunk_id: str) -> None:
        """Some of a chunk's prompts were answered."""
        with self._lock:
            if chunk_id in self._in_hand:
                self._in_hand[chunk_id] = time.monotonic()

    def give_back(self, chunk: JudgeChunk, device_deaths: Mapping[int, int]) -> None:
        """Note that a chunk goes back to its queue because no device is there: the delivery does not count."""
        with ignore_redis_errors("give_back"):
            self._leases.uncount(Task.of(chunk).committed_id, device_deaths)

    def note_return(self, chunk: JudgeChunk) -> None:
        """Note that a chunk goes back to its queue because of an error."""
        with ignore_redis_errors("return"):
            self._leases.count_return(Task.of(chunk).committed_id)

    def count_pass(self, chunk: JudgeChunk) -> float:
        """Note that this worker has another fingerprint than the chunk's run; returns for how many seconds some had."""
        return retry(lambda: self._leases.pass_on(Task.of(chunk).committed_id))

    def pass_on(self, chunk: JudgeChunk, tag: str | None) -> None:
        """Give a chunk to another worker, behind all that waits."""

        def publish() -> None:
            with self._queues.transaction() as pipe:
                self._queues.publish(chunk, pipe)
                self._end(pipe, chunk.chunk_id, tag)
                pipe.execute()

        retry(publish)
        self._note_end(chunk.chunk_id, tag)

    def take_over(self, chunk: JudgeChunk) -> None:
        """Note that a chunk that others passed on is judged here."""
        with ignore_redis_errors("take_over"):
            self._leases.take_over(Task.of(chunk).committed_id)

    def begin_try(self, chunk: JudgeChunk, seq: int, survived: int | None) -> None:
        """Note, before it happens, that an item is judged alone, and that this worker survived another one."""
        retry(lambda: self._leases.begin_try(Task.of(chunk).committed_id, seq, survived))

    def end_try(self, chunk: JudgeChunk, seq: int) -> None:
        """Note that this worker lives, though the item is not judged."""
        with ignore_redis_errors("end_try"):
            self._leases.end_try(Task.of(chunk).committed_id, seq)

    def finish(self, verdicts: VerdictChunk, tag: str | None, fresh: Mapping[bytes, bytes]) -> None:
        """Publish a chunk's verdicts and be done with its message; waits while the broker is away or full."""
        message = verdicts_message(verdicts)

        def publish() -> None:
            with self._queues.transaction() as pipe:
                self._queues.push(VERDICTS, message, pipe)
                if self._cache is not None:
                    self._cache.put(pipe, fresh)
                self._end(pipe, verdicts.chunk_id, tag)
                pipe.execute()

        retry(publish)
        self._note_end(verdicts.chunk_id, tag)

    def _end(self, pipe: Pipeline, chunk_id: str, tag: str | None) -> None:
        """End a chunk's lease and acknowledge its message, as part of a pipeline."""
        self._leases.release(pipe, self._queue, self._holder, chunk_id)
        if tag is not None:
            self._queues.acknowledge(pipe, tag)

    def _note_end(self, chunk_id: str, tag: str | None) -> None:
        if tag is not None:
            self._acknowledged.add(tag)  # so that Celery's own acknowledgement, which comes next, asks nothing of Redis
        with self._lock:
            self._in_hand.pop(chunk_id, None)

    def keep(self, stop: threading.Event) -> None:
        """Renew the leases every few seconds, so that no reconciler takes for lost what is in hand, until stopped.

        A chunk that has made no progress for very long is not held any more: somebody else may have it.
        """
        while not stop.is_set():
            oldest = time.monotonic() - self._longest_hold_s
            with self._lock:
                chunk_ids = [chunk_id for chunk_id, at in self._in_hand.items() if at > oldest]
            try:
                self._leases.hold(self._queue, self._holder, chunk_ids)
            except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away, the loop must go on
                log.warning("hold_failed", error=str(error))
            if self._cache is not None:
                self._cache.look_for_room()  # here, where no chunk waits for it
            stop.wait(HELD_FOR_S / 3)
