"""One look at the fleet for a scrape: board, devices' pulses, ledger. What a server that is away knows is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Final, NamedTuple, TypeVar

import redis
import sqlalchemy as sa
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from infra.broker.app import FINALIZING, VERDICTS, queue_of
from infra.coordination import counters as telemetry
from infra.coordination.store import CoordinationStore, open_coordination
from infra.errors import ServerError
from infra.ledger.backlog import Backlog, Pending, read_backlog
from infra.ledger.recovery import LaneKey
from infra.log import get_logger
from infra.servers.services import Services
from producer.exporter.page import Page
from schemas.fleet import Announcement, ready
from schemas.items import Label
from schemas.messages import Lane
from schemas.verdicts import Outcome

AWAY: Final = (redis.RedisError, sa.exc.SQLAlchemyError, ServerError)
"""What it looks like when a server does not answer."""

_PULSE: Final = {
    "batches": telemetry.DEVICE_BATCHES,
    "items": telemetry.DEVICE_PROMPTS,
    "rows": telemetry.DEVICE_ROWS,
    "tokens": telemetry.DEVICE_TOKENS,
    "padded_tokens": telemetry.DEVICE_PADDED_TOKENS,
    "busy_s": telemetry.DEVICE_BUSY,
    "budget_tokens": telemetry.DEVICE_BUDGET,
}
_SETTLED_AS: Final = (
    *((Outcome.SCORED.value, label.value) for label in Label),
    *((outcome.value, telemetry.NO_LABEL) for outcome in (Outcome.UNPARSEABLE, Outcome.DEAD)),
)

T = TypeVar("T")
log = get_logger(__name__)


class _Notices(NamedTuple):
    """What the board says: who is there, chunks queued and held per lane, and what was counted."""

    announced: list[Announcement]
    queued: dict[LaneKey, int]
    held: dict[LaneKey, int]
    verdicts: int
    finalizing: int
    parked: int
    counts: dict[str, str]


class FleetCollector(Collector):
    """Looks at the fleet anew for every scrape. Thread-safe."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Family]:
        """As Prometheus' client wants it."""
        yield from look(self._services, lambda: self._coordination).collect()

    @cached_property
    def _coordination(self) -> CoordinationStore:
        """One that does not wait for a broker that is away: the ledger's half is told all the same."""
        settings = self._services.settings.model_copy(update={"wait_for_servers_s": 0})
        return open_coordination(self._services.redis_url, settings)


def look(services: Services, find_board: Callable[[], CoordinationStore], guards: Sequence[str] = ()) -> Page:
    """What the fleet is doing now. `guards` are told of even where nobody serves them and nothing waits."""
    page = Page()
    backlog = _ask(page, "ledger", lambda: read_backlog(services.engine))
    lanes = {LaneKey(guard, lane) for guard in guards for lane in Lane} | set(backlog.pending if backlog else ())
    notices = _ask(page, "broker", lambda: _read_board(find_board(), lanes))
    if notices is not None:
        lanes |= set(notices.queued)
        _tell_notices(page, notices, sorted(lanes))
    if backlog is not None:
        _tell_backlog(page, backlog, sorted(lanes))
    return page


def nothing_known() -> Page:
    """For a look that did not end in time."""
    page = Page()
    for server in ("ledger", "broker"):
        page.set(telemetry.SERVER_UP, 0, server)
    return page


def _ask(page: Page, server: str, question: Callable[[], T]) -> T | None:
    try:
        answer = question()
    except AWAY as error:
        log.warning("metrics_without", server=server, error=type(error).__name__)
        page.set(telemetry.SERVER_UP, 0, server)
        return None
    page.set(telemetry.SERVER_UP, 1, server)
    return answer


def _read_board(coordination: CoordinationStore, pending: set[LaneKey]) -> _Notices:
    announced = coordination.presence.announced()
    guards = {str(process.guard) for process in announced if process.kind == "worker"}
    lanes = pending | {LaneKey(guard, lane) for guard in guards for lane in Lane}
    return _Notices(
        announced,
        queued={key: coordination.queues.length(*key) for key in lanes},
        held={key: len(coordination.leases.held(queue_of(*key))) for key in lanes},
        verdicts=coordination.queues.verdicts_waiting(),
        finalizing=coordination.queues.finalizing_waiting(),
        parked=coordination.dead_letters.count(),
        counts=coordination.counters.read(),
    )


def _tell_backlog(page: Page, backlog: Backlog, lanes: Sequence[LaneKey]) -> None:
    for key in lanes:
        pending = backlog.pending.get(key, Pending(0, 0.0))
        page.set(telemetry.ITEMS_PENDING, pending.items, *key)
        page.set(telemetry.OLDEST_AGE, pending.oldest_age_s, *key)
    page.set(telemetry.DEAD_ITEMS, backlog.dead)
    page.set(telemetry.WEBHOOKS_PENDING, backlog.webhooks)
    page.set(telemetry.WEBHOOKS_DUE_AGE, backlog.webhooks_due_age_s)


def _tell_notices(page: Page, notices: _Notices, lanes: Sequence[LaneKey]) -> None:
    for key in lanes:
        page.set(telemetry.QUEUE_CHUNKS, notices.queued[key], *key)
        page.set(telemetry.HELD_CHUNKS, notices.held[key], *key)
        page.set(telemetry.CELERY_QUEUE_LENGTH, notices.queued[key], queue_of(*key))
    page.set(telemetry.CELERY_QUEUE_LENGTH, notices.verdicts, VERDICTS)
    page.set(telemetry.CELERY_QUEUE_LENGTH, notices.finalizing, FINALIZING)
    page.set(telemetry.VERDICT_CHUNKS, notices.verdicts)
    page.set(telemetry.PARKED_MESSAGES, notices.parked)
    _tell_processes(page, notices.announced, sorted({key.guard for key in lanes}))
    page.count(notices.counts)
    for key in lanes:
        _begin_at_zero(page, key)
    page.zero(telemetry.FINISHED_ANEW)


def _tell_processes(page: Page, announced: Sequence[Announcement], guards: Sequence[str]) -> None:
    for guard in guards:
        page.set(telemetry.WORKERS, len(ready(announced, "worker", guard)), guard)
    page.set(telemetry.COLLECTORS, len(ready(announced, "collector")))
    page.set(telemetry.WEBHOOK_SENDERS, len(ready(announced, "webhooks")))
    for process in announced:
        if process.kind == "worker":
            _tell_device(page, process)


def _tell_device(page: Page, worker: Announcement) -> None:
    """What a worker announced of its device; one of another version may say less."""
    for name, metric in _PULSE.items():
        if (value := getattr(worker, name)) is not None:
            page.set(metric, value, str(worker.guard), worker.id)


def _begin_at_zero(page: Page, key: LaneKey) -> None:
    for outcome, label in _SETTLED_AS:
        page.zero(telemetry.ITEMS_SETTLED, *key, outcome, label)
    for metric in (telemetry.ITEMS_CACHED, telemetry.DUPLICATES):
        page.zero(metric, *key)
    for kind in telemetry.TOKEN_KINDS:
        page.zero(telemetry.TOKENS_SPENT, *key, kind)
    for action in telemetry.RECONCILER_ACTIONS:
        page.zero(telemetry.RECONCILED, *key, action)
