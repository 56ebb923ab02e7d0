"""What an operator wants to know, asked of board and ledger: lanes, workers, the mix of verdicts, runs. Blocking."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy.exc import OperationalError

from infra.broker.backpressure import oldest_age_s
from infra.ledger import mix, reading
from infra.ledger.mix import MixBar
from infra.ledger.reading import RunStatus
from infra.settings import Settings
from producer.gateway.state import Gateway
from schemas.fleet import Announcement
from schemas.messages import Lane
from schemas.runs import RunReport

BARS: Final = 48
BAR_S: Final = 1_800

_RUNS_SHOWN: Final = 10
_CHART_KEPT_S: Final = 10.0
_REPORTS_KEPT: Final = 200


class LaneFacts(NamedTuple):
    """A queue: chunks that wait, the age of the oldest, and whether that is above the high-water mark."""

    guard: str
    lane: Lane
    chunks: int
    age_s: float
    late: bool


class WorkerFacts(NamedTuple):
    """A worker's device (or a collector, which has none). `busy`: its share of the last minute, None until known."""

    id: str
    kind: str
    guard: str | None
    state: str
    items: int | None
    busy: float | None


class RunFacts(NamedTuple):
    """A run with its progress (None until a total is known) and, once it has ended, its averages over sources."""

    status: RunStatus
    total: int
    items_per_s: float | None
    accuracy: float | None
    f1_unsafe: float | None


class Column(NamedTuple):
    """One bar of the chart: from where to where (0 to 1, from above) each kind of verdict reaches."""

    bar: MixBar
    parts: tuple[tuple[str, float, float], ...]


class Chart(NamedTuple):
    """The mix of verdicts as columns, the busiest of them as high as the picture, and the totals."""

    columns: tuple[Column, ...]
    highest: int
    totals: MixBar


class FleetFacts(NamedTuple):
    """Everything; no chart where the ledger is too busy to draw one."""

    lanes: Sequence[LaneFacts]
    verdict_chunks: int
    workers: Sequence[WorkerFacts]
    chart: Chart | None
    runs: Sequence[RunFacts]
    now: datetime


class Fleet:
    """Asks, and remembers what need not be asked again."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._charts: dict[str | None, tuple[float, Chart | None]] = {}
        self._averages: dict[str, tuple[float | None, float | None]] = {}

    def facts(self, tenant: str | None) -> FleetFacts:
        """The fleet as it is now, with the verdicts and runs of one tenant, or of all (None)."""
        coordination = self._gateway.coordination
        runs = self._runs(tenant)
        announced = coordination.presence.announced()
        return FleetFacts(
            lanes=self._lanes(announced, runs),
            verdict_chunks=coordination.queues.verdicts_waiting(),
            workers=self._workers(announced),
            chart=self._chart(tenant),
            runs=runs,
            now=datetime.now(UTC),
        )

    def _lanes(self, announced: Sequence[Announcement], runs: Sequence[RunFacts]) -> list[LaneFacts]:
        guards = {self._gateway.default_guard}
        guards |= {str(process.guard) for process in announced if process.kind == "worker"}
        guards |= {run.status.spec.guard for run in runs if not run.status.state.ended}
        return [self._lane(guard, lane) for guard in sorted(guards) for lane in (Lane.LIVE, Lane.BULK)]

    def _lane(self, guard: str, lane: Lane) -> LaneFacts:
        coordination = self._gateway.coordination
        age_s = oldest_age_s(self._gateway.services, coordination, guard, lane)
        late = age_s > _high_water_s(self._gateway.settings, lane)
        return LaneFacts(guard, lane, coordination.queues.length(guard, lane), age_s, late)

    def _workers(self, announced: Sequence[Announcement]) -> list[WorkerFacts]:
        found = [
            WorkerFacts(
                id=process.id,
                kind=process.kind,
                guard=process.guard,
                state=process.state,
                items=process.items,
                busy=process.busy_share,
            )
            for process in announced
        ]
        return sorted(found, key=lambda worker: (worker.kind != "worker", worker.guard or "", worker.id))

    def _chart(self, tenant: str | None) -> Chart | None:
        until, chart = self._charts.get(tenant, (0.0, None))
        if time.monotonic() >= until:
            try:
                chart = chart_of(mix.verdict_mix(self._gateway.services.engine, tenant, bars=BARS, bar_s=BAR_S))
            except OperationalError:  # it took too long, and would again
                chart = None
            self._charts[tenant] = (time.monotonic() + _CHART_KEPT_S, chart)
        return chart

    def _runs(self, tenant: str | None) -> list[RunFacts]:
        found = reading.list_runs(self._gateway.services.engine, limit=_RUNS_SHOWN, tenant=tenant)
        return [self._run(status) for status in found]

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
            self._averages[status.id] = _averages(reading.stored_report(self._gateway.services.engine, status.id))
        return self._averages[status.id]


def chart_of(bars: Sequence[MixBar]) -> Chart:
    """Bars as a picture."""
    highest = max(bar.total for bar in bars)
    sums = {kind: sum(getattr(bar, kind) for bar in bars) for kind in MixBar._fields[1:]}
    return Chart(tuple(_column(bar, max(1, highest)) for bar in bars), highest, MixBar(bars[0].begins_at, **sums))


def _column(bar: MixBar, highest: int) -> Column:
    parts: list[tuple[str, float, float]] = []
    bottom = 1.0
    for kind in MixBar._fields[1:]:
        height = getattr(bar, kind) / highest
        if height:
            bottom -= height
            parts.append((kind, bottom, height))
    return Column(bar, tuple(parts))


def _averages(report: RunReport | None) -> tuple[float | None, float | None]:
    group = next((group for group in report.groups if group.kind == "average"), None) if report else None
    return (group.value("accuracy"), group.value("f1_unsafe")) if group else (None, None)


def _high_water_s(settings: Settings, lane: Lane) -> float:
    return settings.live_high_water_age_s if lane is Lane.LIVE else settings.high_water_age_s
