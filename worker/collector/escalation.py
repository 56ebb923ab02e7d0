"""Escalation in a cascade: items that one stage was not sure of are accepted by the next stage, its child run.

While a stage goes on, what has settled follows window by window, and waits where the next guard's queue is full. Every
collector tries: an item that two escalate at once is refused to one of them, which then looks again.
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


class Escalation:
    """Looks at every unfinished stage, a few times a second while there is one."""

    def __init__(self, services: Services, publisher: Publisher) -> None:
        self._services = services
        self._publisher = publisher
        self._searched_to: dict[str, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Escalate until stopped."""
        while not stop.wait(_LOOK_EVERY_S if self._searched_to else _LOOK_IDLY_EVERY_S):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a loop's edge: broker or ledger may be away for a while
                log.warning("handing_on_waits", error=str(error))

    def look(self) -> int:
        """One pass over all stages; returns how many items went on."""
        waiting = escalating(self._services.engine)
        self._searched_to = {run_id: seq for run_id, seq in self._searched_to.items() if run_id in waiting}
        return sum(map(self._escalate_from, waiting))

    def _escalate_from(self, run_id: str) -> int:
        parent = run_status(self._services.engine, run_id)
        spec = open_next(self._services.engine, parent)
        try:
            if not parent.cancelled:
                return self._escalate(parent, spec)
            child = next_id(parent.id)
            settled = settlement.cancel(self._services.engine, child)
            self._services.coordination.notices.cancelled(child)
            if settled.finished:
                self._publisher.finalize(child)
            self._publisher.finalize(parent.id)
        except (DataError, RunError) as error:  # another collector was first
            log.info("handed_on_by_another", run=run_id, reason=type(error).__name__)
        return 0

    def _escalate(self, parent: RunStatus, spec: RunSpec) -> int:
        engine, settings = self._services.engine, self._services.settings
        child, escalated = next_id(parent.id), 0
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
                escalated += len(found.items)
            self._searched_to[parent.id] = found.searched_to  # only now: a crash before looks at the window again
            if found.last:
                if intake.seal(engine, child):
                    self._publisher.finalize(child)
                self._publisher.finalize(parent.id)
                log.info("handed_on", run=parent.id, next=child)
                break
            if len(found.items) < _WINDOW_ITEMS:
                break
        return escalated
