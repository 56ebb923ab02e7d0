"""The contents of the console's panels: the review queue with an item in front, a text that a person tries, the fleet.

The fleet's panel has lanes, workers, the verdicts of a day as a chart, and runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from infra.errors import ServerError
from infra.fleet import look
from infra.ledger import reviews
from infra.ledger.intake import Submission
from infra.ledger.reviews import Review, ReviewItem
from infra.ledger.runs import RunStatus, list_runs, stored_report
from infra.ledger.stats import VerdictBar, item_timings, verdict_histogram
from producer.gateway.api.requests import ItemBatch, accept_and_wait, guard_of, item_of
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway, Principal
from producer.intake.verdict_waiter import ItemRef
from schemas.fleet import Announcement, Queue
from schemas.items import Dialogue, Kind
from schemas.messages import Lane
from schemas.verdicts import Timings, Verdict

SHOWN: Final = 50
SURFACE: Final = "console"
"""Distinguishes tried texts from a platform's own items, in policies and in the feed of verdicts."""
BARS: Final = 48
BAR_S: Final = 1_800
_RUNS_SHOWN: Final = 10
_CHART_KEPT_S: Final = 10.0
_REPORTS_KEPT: Final = 200


class QueuePage(NamedTuple):
    """`current` is the item in front; `waits` says whether it waits or was decided (`history`, the newest first)."""

    now: datetime
    items: Sequence[ReviewItem]
    current: ReviewItem | None = None
    waits: bool = True
    previous: str | None = None
    following: str | None = None
    history: Sequence[Review] = ()

    @property
    def full(self) -> bool:
        """True if more wait than are shown."""
        return len(self.items) == SHOWN


def queue_page(engine: sa.Engine, tenant: str | None, wanted: ItemRef | None = None) -> QueuePage:
    """The queue of a tenant, or of all (None), with the wanted item in front, or else the first."""
    now = datetime.now(UTC)
    # Moderators of one day share a sample: what one decided is not asked of the next.
    page = QueuePage(now, reviews.review_queue(engine, tenant, SHOWN, seed=now.toordinal()))
    names = [item.name for item in page.items]
    name = wanted.name if wanted else None
    if wanted and name not in names:
        decided = reviews.review_item(engine, wanted.run_id, wanted.seq)
        if decided is not None and tenant in (None, decided.tenant):
            history = reviews.review_history(engine, wanted.run_id, wanted.seq)
            return page._replace(current=decided, waits=False, history=history, following=names[0] if names else None)
    if not names:
        return page
    at = names.index(name) if name in names else 0
    following = names[at + 1] if at + 1 < len(names) else None
    return page._replace(current=page.items[at], previous=names[at - 1] if at else None, following=following)


class Tried(NamedTuple):
    """The outcome of a tried text. No verdict: it did not come in time, or (`problem`) the text was not let in."""

    guard: str
    verdict: Verdict | None = None
    name: str | None = None
    total_s: float | None = None
    timings: Timings | None = None
    decided: ReviewItem | None = None
    problem: str | None = None
    status: int = 200


async def try_text(gateway: Gateway, principal: Principal, text: str, question: str) -> Tried:
    """Have a text judged by the default guard."""
    guard = guard_of(None, gateway, field="guard")
    started = time.monotonic()
    try:
        kind = Kind.PAIR if question else Kind.TEXT
        item = item_of(Dialogue(question, text, kind=kind), fields={"response": "text"})
        submission = Submission(principal.tenant, metadata={"surface": SURFACE})
        batch = ItemBatch(principal.tenant, guard, [item], {item.id: submission})
        refs, verdicts = await accept_and_wait(gateway, batch, None, wait_s=gateway.settings.gateway_wait_s)
    except ProblemError as error:
        return Tried(guard.name, problem=error.detail, status=error.status)
    total_s = time.monotonic() - started
    (ref,) = refs
    if verdicts is None:
        return Tried(guard.name, name=ref.name, total_s=total_s)
    timings = await gateway.ask(item_timings, ref.run_id, ref.seq)
    decided = await gateway.ask(reviews.review_item, ref.run_id, ref.seq)
    return Tried(guard.name, verdicts[0], ref.name, total_s, timings, decided)


class RunFacts(NamedTuple):
    """A run with its progress (None until a total is known) and, once it has ended, its averages over sources."""

    status: RunStatus
    total: int
    items_per_s: float | None
    accuracy: float | None
    f1_unsafe: float | None


class Column(NamedTuple):
    """One bar of the chart: from where to where (0 to 1, from above) each kind of verdict reaches."""

    bar: VerdictBar
    parts: tuple[tuple[str, float, float], ...]


class Chart(NamedTuple):
    """The verdict histogram as columns, the busiest of them as high as the picture, and the totals."""

    columns: tuple[Column, ...]
    highest: int
    totals: VerdictBar


class FleetFacts(NamedTuple):
    """Everything in the panel; no chart where the ledger is too busy to draw one.

    `limit_s`: the high-water mark of each lane, above which a queue's oldest chunk is late.
    """

    queues: Sequence[Queue]
    limit_s: Mapping[Lane, float]
    verdict_chunks: int
    processes: Sequence[Announcement]
    chart: Chart | None
    runs: Sequence[RunFacts]
    now: datetime


class Fleet:
    """Looks at the fleet, and remembers what need not be read again."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._charts: dict[str | None, tuple[float, Chart | None]] = {}
        self._averages: dict[str, tuple[float | None, float | None]] = {}

    def facts(self, tenant: str | None) -> FleetFacts:
        """The fleet as it is now, with the verdicts and runs of one tenant, or of all (None).

        Raises:
            ServerError: the broker is away. Without the ledger there are no runs, so that reading them says it first.
        """
        found = list_runs(self._gateway.services.engine, limit=_RUNS_SHOWN, tenant=tenant)
        runs = [self._run(status) for status in found]
        guards = {self._gateway.default_guard, *(run.spec.guard for run in found if not run.state.ended)}
        fleet = look(self._gateway.services, at_once=True, guards=guards)
        if "broker" in fleet.away:
            raise ServerError(fleet.away["broker"])
        # What is pending of other tenants on lanes that no worker serves is not this visitor's to see.
        guards |= {str(worker.guard) for worker in fleet.of_kind("worker")}
        shown = sorted((q for q in fleet.queues if q.guard in guards), key=lambda q: (q.guard, q.lane is Lane.BULK))
        until, chart = self._charts.get(tenant, (0.0, None))
        if time.monotonic() >= until:
            try:
                chart = chart_of(verdict_histogram(self._gateway.services.engine, tenant, bars=BARS, bar_s=BAR_S))
            except OperationalError:  # it took too long, and would again
                chart = None
            self._charts[tenant] = (time.monotonic() + _CHART_KEPT_S, chart)
        settings = self._gateway.settings
        return FleetFacts(
            queues=shown,
            limit_s={Lane.LIVE: settings.live_high_water_age_s, Lane.BULK: settings.high_water_age_s},
            verdict_chunks=fleet.verdicts_waiting,
            processes=sorted(fleet.announced, key=lambda one: (one.kind != "worker", one.guard or "", one.id)),
            chart=chart,
            runs=runs,
            now=datetime.now(UTC),
        )

    def _run(self, status: RunStatus) -> RunFacts:
        counts = status.counts
        if status.state.ended and status.id not in self._averages:
            if len(self._averages) >= _REPORTS_KEPT:
                self._averages.clear()
            report = stored_report(self._gateway.services.engine, status.id)
            group = next((group for group in report.groups if group.kind == "average"), None) if report else None
            self._averages[status.id] = (group.value("accuracy"), group.value("f1_unsafe")) if group else (None, None)
        accuracy, f1_unsafe = self._averages.get(status.id, (None, None))
        total = status.expected if status.expected is not None else counts.accepted * status.spec.repeat
        # A run of live traffic waits for callers most of the time: its speed would say nothing.
        timed = status.spec.lane is Lane.BULK and status.seconds > 0 and counts.settled > 0
        return RunFacts(status, total, counts.settled / status.seconds if timed else None, accuracy, f1_unsafe)


def chart_of(bars: Sequence[VerdictBar]) -> Chart:
    """Bars as a picture."""
    highest = max(bar.total for bar in bars)
    kinds = VerdictBar._fields[1:]
    columns: list[Column] = []
    for bar in bars:
        parts: list[tuple[str, float, float]] = []
        bottom = 1.0
        for kind in kinds:
            height = getattr(bar, kind) / max(1, highest)
            if height:
                bottom -= height
                parts.append((kind, bottom, height))
        columns.append(Column(bar, tuple(parts)))
    sums = {kind: sum(getattr(bar, kind) for bar in bars) for kind in kinds}
    return Chart(tuple(columns), highest, VerdictBar(bars[0].begins_at, **sums))
