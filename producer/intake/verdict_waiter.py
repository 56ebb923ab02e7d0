"""Waiting for the verdicts of live items: one subscription and one thread that reads for all who wait.

A notice says which items of a run have settled, never how: their verdicts are read from the ledger, those of several
notices together where they come fast. A notice may be lost without harm: what still waits is looked up every second.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

from redis.client import PubSub

from infra.errors import ItemLostError
from infra.fleet import AWAY
from infra.ledger.items import verdicts_by_item
from infra.log import get_logger
from infra.servers.services import Services
from schemas.items import submitted_name
from schemas.verdicts import Verdict

_LOOK_EVERY_S: Final = 1.0

log = get_logger(__name__)


class ItemRef(NamedTuple):
    """An accepted item's place in the ledger."""

    run_id: str
    seq: int

    @property
    def name(self) -> str:
        """The item's name over HTTP and in webhooks."""
        return submitted_name(self.run_id, self.seq)


class PendingVerdicts:
    """The verdicts to come of one caller's items; `result` is done when the last of them is there, in their order.

    It raises ItemLostError where another item, by its id, has got the place of one of them.
    """

    def __init__(self, refs: Sequence[ItemRef], item_ids: Sequence[str]) -> None:
        self.refs: Final = refs
        self.item_ids: Final = dict(zip(refs, item_ids, strict=False))
        self.found: Final[dict[ItemRef, Verdict]] = {}
        self.result: Final[Future[list[Verdict]]] = Future()
        self.result.set_running_or_notify_cancel()  # a caller who gives up calls `forget`; no other code cancels it


class VerdictWaiter:
    """Delivers verdicts to those who wait, from a thread of its own. Thread-safe: `_lock` guards `_waiting`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[int, list[PendingVerdicts]]] = {}
        self._look_at = 0.0
        self._started = False
        self._subscribed = threading.Event()
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to follow, unless that was done; returns once subscribed, or after a second without the broker."""
        with self._lock:
            if self._started:
                return
            self._started = True
        threading.Thread(target=self._run, name="verdicts", daemon=True).start()
        self._subscribed.wait(_LOOK_EVERY_S)

    def stop(self) -> None:
        """Follow no more; call it when no caller waits."""
        self._stop.set()

    @property
    def count(self) -> int:
        """Items that are waited for."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def expect(self, refs: Sequence[ItemRef], item_ids: Sequence[str] = ()) -> PendingVerdicts:
        """The verdicts to come of some items; `forget` them when time is up.

        Call it before the items are enqueued, so that no notice of them comes earlier. With `item_ids`, in the same
        order, no other item's verdict is taken for one of theirs: a failover that lost commits gives places twice.
        """
        pending = PendingVerdicts(refs, item_ids)
        with self._lock:
            for ref in refs:
                self._waiting.setdefault(ref.run_id, {}).setdefault(ref.seq, []).append(pending)
        return pending

    def expect_settled(self, refs: Sequence[ItemRef]) -> PendingVerdicts:
        """As `expect`, for items of one run that were enqueued earlier: the ledger is read at once. Blocks."""
        pending = self.expect(refs)
        self._read(refs[0].run_id, [ref.seq for ref in refs])
        return pending

    def forget(self, pending: PendingVerdicts) -> None:
        """Wait no more for what is still missing; nothing happens where all is there."""
        with self._lock:
            for run_id, seq in pending.refs:
                waiting = self._waiting.get(run_id, {})
                others = [other for other in waiting.pop(seq, []) if other is not pending]
                if others:
                    waiting[seq] = others
                elif not waiting:
                    self._waiting.pop(run_id, None)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._services.coordination.notices.watching_all() as channel:
                    self._subscribed.set()
                    while not self._stop.is_set():
                        for run_id, seqs in self._settled(channel).items():
                            self._read(run_id, list(seqs))
            except AWAY as error:
                log.warning("verdicts_unheard", error=type(error).__name__)
                self._stop.wait(_LOOK_EVERY_S)

    def _settled(self, channel: PubSub) -> dict[str, set[int]]:
        """Items that are waited for and have settled by the notices that have come; once a second, all that wait."""
        settled: defaultdict[str, set[int]] = defaultdict(set)
        message = channel.get_message(timeout=max(0.0, self._look_at - time.monotonic()))
        while message is not None:
            run_id = self._services.coordination.notices.run_of(message["channel"])
            with self._lock:
                waiting = self._waiting.get(run_id)
                if waiting:  # most notices are of runs that no caller here waits for: their lists are not even parsed
                    settled[run_id].update(seq for seq in json.loads(message["data"]) if seq in waiting)
            message = channel.get_message(timeout=0)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            with self._lock:
                for run_id, waiting in self._waiting.items():
                    settled[run_id].update(waiting)
        return {run_id: seqs for run_id, seqs in settled.items() if seqs}

    def _read(self, run_id: str, seqs: Sequence[int]) -> None:
        """Read verdicts from the ledger and deliver them."""
        verdicts: Mapping[int, tuple[str, Verdict]] = verdicts_by_item(self._services.engine, run_id, seqs)
        complete: list[PendingVerdicts] = []
        lost: list[PendingVerdicts] = []
        with self._lock:
            waiting = self._waiting.get(run_id, {})
            for seq, (item_id, verdict) in verdicts.items():
                ref = ItemRef(run_id, seq)
                for pending in waiting.pop(seq, []):
                    if pending.item_ids.get(ref, item_id) != item_id:
                        lost.append(pending)
                        continue
                    pending.found[ref] = verdict
                    if len(pending.found) == len(pending.refs):
                        complete.append(pending)
            if not waiting:
                self._waiting.pop(run_id, None)
        for pending in complete:  # without the lock: a callback of the future may do anything
            pending.result.set_result([pending.found[ref] for ref in pending.refs])
        for pending in dict.fromkeys(lost):
            self.forget(pending)
            pending.result.set_exception(ItemLostError("the ledger lost the item in a failover; send it again"))
