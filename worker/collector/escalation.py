"""The way from one stage of a cascade to the next: what a stage was not sure of is accepted by its child run.

While a stage goes on, what has settled follows window by window, and waits where the next guard's queue is full. Every
collector tries: an item that two hand on at once is refused to one of them, which then looks again.
"""

from __future__ import annotations

import threading
from typing import Final

from infra import tracing
from infra.broker.backpressure import has_room
from infra.broker.chunking import in_chunks
from infra.broker.queues import Publisher
from infra.errors import DataError, RunError
from infra.ledger import intake, settlement
from infra.ledger.runs import RunStatus, escalating, next_escalation, next_id, open_next, run_status
from infra.log import get_logger
from infra.servers.services import Services
from schemas.runs import RunSpec

_LOOK_EVERY_S: Final = 0.25
_LOOK_IDLY_EVERY_S: Final = 1.0
"""While no cascade is under way: most fleets never see one."""
_WINDOW_ITEMS: Final = 2_048

log = get_logger(__name__)


class HandingOn:
    """Looks at every unfinished stage, a few times a second while there is one."""

    def __init__(self, services: Services, publisher: Publisher) -> None:
        self._services = services
        self._publisher = publisher
        self._searched_to: dict[str, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Hand on until stopped."""
        while not stop.wait(_LOOK_EVERY_S if self._searched_to else _LOOK_IDLY_EVERY_S):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a loop's edge: broker or ledger may be away for a while
                log.warning("handing_on_waits", error=str(error))

    def look(self) -> int:
        """One pass over all stages; returns how many items went on."""
        waiting = escalating(self._services.engine)
        self._searched_to = {run_id: seq for run_id, seq in self._searched_to.items() if run_id in waiting}
        return sum(map(self._from_stage, waiting))

    def _from_stage(self, run_id: str) -> int:
        engine = self._services.engine
        parent = run_status(engine, run_id)
        spec = open_next(engine, parent)
        try:
            if not parent.cancelled:
                return self._hand_on(parent, spec)
            self._cancel_next(parent)
        except (DataError, RunError) as error:  # another collector was first
            log.info("handed_on_by_another", run=run_id, reason=type(error).__name__)
        return 0

    def _hand_on(self, parent: RunStatus, spec: RunSpec) -> int:
        engine, settings = self._services.engine, self._services.settings
        child, handed_on = next_id(parent.id), 0
        while has_room(self._services, spec):
            after = self._searched_to.get(parent.id, -1)
            found = next_escalation(engine, parent, after=after, limit=_WINDOW_ITEMS)
            if found.items:
                groups = in_chunks(found.items, max_items=settings.chunk_items, max_bytes=settings.chunk_bytes)
                with tracing.span(
                    "libra.submit", guard=spec.guard, lane=spec.lane.value, run_id=child, items=len(found.items)
                ):
                    for chunk in intake.accept(engine, child, spec, groups):
                        self._publisher.judge(chunk)
                handed_on += len(found.items)
            self._searched_to[parent.id] = found.searched_to
            if found.last:
                self._seal(parent, child)
                break
            if len(found.items) < _WINDOW_ITEMS:
                break
        return handed_on

    def _seal(self, parent: RunStatus, child: str) -> None:
        if intake.seal(self._services.engine, child):
            self._publisher.finalize(child)
        self._publisher.finalize(parent.id)
        log.info("handed_on", run=parent.id, next=child)

    def _cancel_next(self, parent: RunStatus) -> None:
        child = next_id(parent.id)
        settled = settlement.cancel(self._services.engine, child)
        self._services.coordination.notices.cancelled(child)
        if settled.finished:
            self._publisher.finalize(child)
        self._publisher.finalize(parent.id)
