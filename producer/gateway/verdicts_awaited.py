"""Requests that wait for verdicts: one thread listens and reads for all of them.

A notice says which items of a run have settled, never how: their verdicts are read from the ledger, those of several
notices together where they come fast. A notice may be lost without harm: what still waits is looked up every second.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import redis
import sqlalchemy as sa
from redis.client import PubSub

from infra.coordination.store import CoordinationStore
from infra.ledger import settlement
from infra.log import get_logger
from schemas.verdicts import Verdict

_LOOK_EVERY_S: Final = 1.0

log = get_logger(__name__)


class ItemRef(NamedTuple):
    """Where an accepted item is in the ledger."""

    run_id: str
    seq: int


class AwaitedVerdicts:
    """Futures of verdicts by place. They belong to the event loop; the thread only looks which places there are."""

    def __init__(self, engine: sa.Engine, coordination: CoordinationStore) -> None:
        self._engine = engine
        self._coordination = coordination
        self._waiting: dict[str, dict[int, list[asyncio.Future[Verdict]]]] = {}
        self._foreseen: set[ItemRef] = set()
        self._look_at = 0.0
        self._stop = threading.Event()

    def start(self) -> None:
        """Listen until stopped. Called on the event loop to which the futures will belong."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(loop,), name="settled", daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        self._stop.set()

    @property
    def count(self) -> int:
        """Items that are waited for."""
        return sum(map(len, list(self._waiting.values())))

    def foresee(self, places: Iterable[ItemRef]) -> None:
        """These will be expected. From any thread, before their items are queued: a notice may outrun the loop."""
        self._foreseen.update(places)

    def expect(self, place: ItemRef) -> asyncio.Future[Verdict]:
        """The verdict to come, within a second where it is there already; `forget` it when time is up."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._foreseen.discard(place)
        self._waiting.setdefault(place.run_id, {}).setdefault(place.seq, []).append(future)
        return future

    def forget(self, places: Sequence[ItemRef], futures: Sequence[asyncio.Future[Verdict]]) -> None:
        """Nobody waits for these any more."""
        for place, future in zip(places, futures, strict=True):
            waiting = self._waiting.get(place.run_id, {})
            others = [other for other in waiting.pop(place.seq, []) if other is not future]
            if others:
                waiting[place.seq] = others
            elif not waiting:
                self._waiting.pop(place.run_id, None)

    def deliver(self, run_id: str, verdicts: Mapping[int, Verdict]) -> None:
        """Give verdicts to those who wait for them. On the event loop."""
        waiting = self._waiting.get(run_id, {})
        for seq, verdict in verdicts.items():
            for future in waiting.pop(seq, []):
                if not future.done():
                    future.set_result(verdict)
        if not waiting:
            self._waiting.pop(run_id, None)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: one subscription, opened anew where it broke; the ledger is asked on either way."""
        while not self._stop.is_set():
            try:
                with self._coordination.notices.watching_all() as channel:
                    while not self._stop.is_set():
                        self._tell(loop, self._heard(channel))
            except (redis.RedisError, sa.exc.SQLAlchemyError) as error:
                log.warning("verdicts_unheard", error=type(error).__name__)
                self._stop.wait(_LOOK_EVERY_S)
            except RuntimeError:  # the loop is closed
                return

    def _heard(self, channel: PubSub) -> dict[str, set[int]]:
        """What is waited for and has settled: all notices that have come, or, once a second, everything."""
        settled: defaultdict[str, set[int]] = defaultdict(set)
        until = self._look_at - time.monotonic()
        message = channel.get_message(timeout=max(0.0, until))
        while message is not None:
            run_id = self._coordination.notices.run_of(message["channel"])
            waiting = self._waiting.get(run_id, {})
            if waiting or self._foreseen:
                seqs = json.loads(message["data"])
                settled[run_id].update(s for s in seqs if s in waiting or ItemRef(run_id, s) in self._foreseen)
            message = channel.get_message(timeout=0)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            for run_id, waiting in list(self._waiting.items()):
                settled[run_id].update(list(waiting))
        return settled

    def _tell(self, loop: asyncio.AbstractEventLoop, settled: Mapping[str, set[int]]) -> None:
        for run_id, seqs in settled.items():
            if seqs:
                verdicts = settlement.verdict_of(self._engine, run_id, list(seqs))
                loop.call_soon_threadsafe(self.deliver, run_id, verdicts)
