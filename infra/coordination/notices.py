"""Notices on Redis of what settled, ended or was cancelled; they may be lost, waiters poll the ledger as well."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import redis
from redis.client import PubSub

from infra.broker.queues import Task
from schemas.messages import JudgeChunk, VerdictChunk


class Notices:
    """One channel a run. A published list names the items that settled; an empty one says that the run ended."""

    def __init__(self, client: redis.Redis, prefix: str, *, remember_s: int) -> None:
        self._redis = client
        self._prefix = prefix
        self._remember_s = remember_s

    def settled(self, chunks: Sequence[VerdictChunk]) -> None:
        """Wake those who wait, and let redelivered copies of the chunks be skipped."""
        with self._redis.pipeline(transaction=False) as pipe:
            for chunk in chunks:
                committed_id = Task.of(chunk).committed_id
                pipe.set(f"{self._prefix}settled:{committed_id}", chunk.attempt, ex=self._remember_s)
                pipe.delete(f"{self._prefix}deliveries:{committed_id}", f"{self._prefix}suspects:{committed_id}")
                pipe.publish(self._channel(chunk.run_id), json.dumps([verdict.seq for verdict in chunk.verdicts]))
            pipe.execute()

    def ended(self, run_id: str) -> None:
        """Say that the run has its report."""
        self._redis.publish(self._channel(run_id), "[]")

    def cancelled(self, run_id: str) -> None:
        """Let workers skip what is still queued of a run."""
        self._redis.set(f"{self._prefix}cancelled:{run_id}", 1, ex=self._remember_s)

    def forget(self, chunk: JudgeChunk) -> None:
        """Take back what lets workers skip a chunk: it is pending, whatever was noted before a failover."""
        settled, cancelled = f"settled:{Task.of(chunk).committed_id}", f"cancelled:{chunk.run_id}"
        self._redis.delete(self._prefix + settled, self._prefix + cancelled)

    @contextmanager
    def watching(self, run_id: str) -> Iterator[PubSub]:
        """A subscription to what settles in a run: JSON lists of item numbers, empty when the run has ended."""
        channel: PubSub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        channel.subscribe(self._channel(run_id))
        with closing(channel):
            yield channel

    @contextmanager
    def watching_all(self) -> Iterator[PubSub]:
        """A subscription to what settles in any run; `run_of` names the run."""
        channel: PubSub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        channel.psubscribe(self._channel("*"))
        with closing(channel):
            yield channel

    def run_of(self, channel_name: str) -> str:
        """The run that a message of `watching_all` is about."""
        return channel_name.removeprefix(self._channel(""))

    def _channel(self, run_id: str) -> str:
        return f"{self._prefix}run:{run_id}"
