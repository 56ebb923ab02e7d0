"""Requests that wait for verdicts: one subscription for all of them, the ledger as the fallback.

A notice says which items of a run have settled, never how: their verdicts are read from the ledger, those of one run
together. A notice may be lost without harm, for whatever still waits is looked up every second as well.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import redis
import sqlalchemy as sa

from infra.board import Board
from infra.ledger import settlement
from infra.log import get_logger
from producer.gateway.pool import Pool
from schemas.verdicts import Verdict

_LOOK_EVERY_S: Final = 1.0
_LISTEN_S: Final = 0.5

log = get_logger(__name__)


class Place(NamedTuple):
    """Where an accepted item is in the ledger."""

    run_id: str
    seq: int


class AwaitedVerdicts:
    """Futures of verdicts by place. Everything but the listening thread runs on the event loop."""

    def __init__(self, engine: sa.Engine, board: Board, pool: Pool) -> None:
        self._engine = engine
        self._board = board
        self._pool = pool
        self._waiting: defaultdict[str, dict[int, list[asyncio.Future[Verdict]]]] = defaultdict(dict)
        self._due: defaultdict[str, set[int]] = defaultdict(set)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._stop = threading.Event()

    async def run(self) -> None:
        """Listen until cancelled."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._listen, args=(loop,), name="settled", daemon=True)
        thread.start()
        try:
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                for run_id, waiting in list(self._waiting.items()):
                    self._read(run_id, waiting)
        finally:
            self._stop.set()

    @property
    def count(self) -> int:
        """Items that are waited for."""
        return sum(map(len, self._waiting.values()))

    def expect(self, place: Place) -> asyncio.Future[Verdict]:
        """The verdict to come; expect it before its item can have been judged, and `forget` it when time is up."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting[place.run_id].setdefault(place.seq, []).append(future)
        return future

    def look(self, places: Sequence[Place]) -> None:
        """Read places of one run that may have settled before they were expected."""
        self._read(places[0].run_id, [place.seq for place in places])

    def forget(self, places: Sequence[Place], futures: Sequence[asyncio.Future[Verdict]]) -> None:
        """Nobody waits for these any more."""
        for place, future in zip(places, futures, strict=True):
            waiting = self._waiting.get(place.run_id, {})
            others = [other for other in waiting.pop(place.seq, []) if other is not future]
            if others:
                waiting[place.seq] = others
            elif not waiting:
                self._waiting.pop(place.run_id, None)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: one subscription, opened anew where it broke."""
        while not self._stop.is_set():
            try:
                with self._board.watching_all() as channel:
                    while not self._stop.is_set():
                        message = channel.get_message(timeout=_LISTEN_S)
                        if message is not None:
                            loop.call_soon_threadsafe(self._noticed, message)
            except redis.RedisError as error:
                log.warning("notices_unheard", error=type(error).__name__)
                self._stop.wait(_LOOK_EVERY_S)
            except RuntimeError:  # the loop is closed
                return

    def _noticed(self, message: dict[str, Any]) -> None:
        run_id = self._board.run_of(message["channel"])
        waiting = self._waiting.get(run_id)
        if waiting:
            self._read(run_id, [seq for seq in json.loads(message["data"]) if seq in waiting])

    def _read(self, run_id: str, seqs: Sequence[int] | dict[int, Any]) -> None:
        if not seqs:
            return
        self._due[run_id].update(seqs)
        if run_id not in self._readers:
            self._readers[run_id] = asyncio.create_task(self._read_due(run_id))

    async def _read_due(self, run_id: str) -> None:
        """Read what is due in a run; what becomes due meanwhile is read in the next round, together."""
        try:
            while seqs := self._due.pop(run_id, None):
                try:
                    found = await self._pool.run(settlement.verdict_of, self._engine, run_id, list(seqs))
                except sa.exc.SQLAlchemyError as error:  # the ledger is away; the next look tries again
                    log.warning("verdicts_unread", error=type(error).__name__)
                    return
                for seq, verdict in found.items():
                    self._settled(run_id, seq, verdict)
        finally:
            del self._readers[run_id]

    def _settled(self, run_id: str, seq: int, verdict: Verdict) -> None:
        waiting = self._waiting.get(run_id, {})
        for future in waiting.pop(seq, []):
            if not future.done():
                future.set_result(verdict)
        if not waiting:
            self._waiting.pop(run_id, None)
