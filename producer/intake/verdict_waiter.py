"""Waiting for the verdicts of a live run: one subscription and one reader, however many wait.

The notice board says early what has settled; the ledger, asked again every second, is the truth and the fallback.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

import redis
from redis.client import PubSub
from sqlalchemy.exc import DBAPIError

from infra.ledger import settlement
from infra.log import get_logger
from infra.servers.services import Services
from schemas.verdicts import Verdict

_LOOK_EVERY_S: Final = 1.0

log = get_logger(__name__)


class SettledWatch:
    """Follows one run from a thread of its own until closed. Thread-safe."""

    def __init__(self, services: Services, run_id: str) -> None:
        self.run_id = run_id
        self._services = services
        self._expected: dict[int, Future[Verdict]] = {}
        self._lock = threading.Lock()
        self._following = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True, name=f"settled-{run_id}").start()
        self._following.wait(_LOOK_EVERY_S)

    def expect(self, seqs: Sequence[int]) -> list[Future[Verdict]]:
        """The verdicts to come of some items. Ask after they are accepted and before they are enqueued."""
        futures = [Future[Verdict]() for _ in seqs]
        with self._lock:
            self._expected.update(zip(seqs, futures, strict=True))
        return futures

    def forget(self, seq: int) -> None:
        """Nobody waits for this item any more."""
        with self._lock:
            self._expected.pop(seq, None)

    def close(self) -> None:
        """Stop following once nobody waits."""
        self._closed.set()

    def _done(self) -> bool:
        return self._closed.is_set() and not self._expected

    def _run(self) -> None:
        while not self._done():
            try:
                self._fulfil(None)
                with self._services.coordination.notices.watching(self.run_id) as channel:
                    self._following.set()
                    self._follow(channel)
            except (redis.RedisError, DBAPIError) as error:
                log.warning("watch_interrupted", run=self.run_id, error=f"{type(error).__name__}: {error}")
                time.sleep(_LOOK_EVERY_S)  # also once it is closed: somebody may wait still

    def _follow(self, channel: PubSub) -> None:
        look_at = time.monotonic()
        while not self._done():
            message = channel.get_message(timeout=_LOOK_EVERY_S)
            if message is None or time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_EVERY_S
                self._fulfil(None)
            else:
                self._fulfil(json.loads(message["data"]))

    def _fulfil(self, settled: Sequence[int] | None) -> None:
        """Read from the ledger what is expected among these items, or all that is expected."""
        with self._lock:
            seqs = [seq for seq in (self._expected if settled is None else settled) if seq in self._expected]
        if not seqs:
            return
        for seq, verdict in settlement.verdict_of(self._services.engine, self.run_id, seqs).items():
            with self._lock:
                future = self._expected.pop(seq, None)
            if future is not None:
                future.set_result(verdict)
