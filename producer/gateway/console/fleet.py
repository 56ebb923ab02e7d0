"""The console's page on the fleet: lanes, workers, the verdicts of a day as a chart, runs. Blocking."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy.exc import OperationalError

from infra.errors import ServerError
from infra.fleet import look
from infra.ledger.runs import RunStatus, list_runs, stored_report
from infra.ledger.stats import VerdictBar, verdict_histogram
from producer.gateway.state import Gateway
from schemas.fleet import Announcement, Queue
from schemas.messages import Lane
from schemas.runs import RunReport

BARS: Final = 48
BAR_S: Final = 1_800

_RUNS_SHOWN: Final = 10
_CHART_KEPT_S: Final = 10.0
_REPORTS_KEPT: Final = 200


class LaneFacts(NamedTuple):
    """A queue, and whether its oldest chunk has waited for longer than the high-water mark."""

    queue: Queue
    late: bool


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
    """The mix of verdicts as columns, the busiest of them as high as the picture, and the totals."""

    columns: tuple[Column, ...]
    highest: int
    totals: VerdictBar


class FleetFacts(NamedTuple):
    """Everything on the page; no chart where the ledger is too busy to draw one."""

    lanes: Sequence[LaneFacts]
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
        return FleetFacts(
            lanes=[LaneFacts(queue, (queue.oldest_s or 0.0) > self._high_water_s(queue.lane)) for queue in shown],
            verdict_chunks=fleet.verdicts_waiting,
            processes=sorted(fleet.announced, key=lambda one: (one.kind != "worker", one.guard or "", one.id)),
            chart=self._chart(tenant),
            runs=runs,
            now=datetime.now(UTC),
        )

    def _high_water_s(self, lane: Lane) -> float:
        settings = self._gateway.settings
        return settings.live_high_water_age_s if lane is Lane.LIVE else settings.high_water_age_s

    def _chart(self, tenant: str | None) -> Chart | None:
        until, chart = self._charts.get(tenant, (0.0, None))
        if time.monotonic() >= until:
            try:
                chart = chart_of(verdict_histogram(self._gateway.services.engine, tenant, bars=BARS, bar_s=BAR_S))
            except OperationalError:  # it took too long, and would again
                chart = None
            self._charts[tenant] = (time.monotonic() + _CHART_KEPT_S, chart)
        return chart

    def _run(self, status: RunStatus) -> RunFacts:
        counts = status.counts
        accuracy, f1_unsafe = self._averages_of(status) if status.state.ended else (None, None)
        total = status.expected if status.expected is not None else counts.accepted * status.spec.repeat
        # A run of live traffic waits for callers most of the time: its speed would say nothing.
        timed = status.spec.lane is Lane.BULK and status.seconds > 0 and counts.settled > 0
        return RunFacts(status, total, counts.settled / status.seconds if timed else None, accuracy, f1_unsafe)

    def _averages_of(self, status: RunStatus) -> tuple[float | None, float | None]:
        if status.id not in self._averages:
            if len(self._averages) >= _REPORTS_KEPT:
                self._averages.clear()
            self._averages[status.id] = _averages(stored_report(self._gateway.services.engine, status.id))
        return self._averages[status.id]


def chart_of(bars: Sequence[VerdictBar]) -> Chart:
    """Bars as a picture."""
    highest = max(bar.total for bar in bars)
    sums = {kind: sum(getattr(bar, kind) for bar in bars) for kind in VerdictBar._fields[1:]}
    return Chart(tuple(_column(bar, max(1, highest)) for bar in bars), highest, VerdictBar(bars[0].begins_at, **sums))


def _column(bar: VerdictBar, highest: int) -> Column:
    parts: list[tuple[str, float, float]] = []
    bottom = 1.0
    for kind in VerdictBar._fields[1:]:
        height = getattr(bar, kind) / highest
        if height:
            bottom -= height
            parts.append((kind, bottom, height))
    return Column(bar, tuple(parts))


def _averages(report: RunReport | None) -> tuple[float | None, float | None]:
    group = next((group for group in report.groups if group.kind == "average"), None) if report else None
    return (group.value("accuracy"), group.value("f1_unsafe")) if group else (None, None)
