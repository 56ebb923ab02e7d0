"""The fleet's metrics in Prometheus' form: a look at the fleet at the time of the scrape, held nowhere."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from infra.broker.app import FINALIZING, VERDICTS, queue_of
from infra.coordination import counters as telemetry
from infra.coordination.counters import SUM, Kind, Metric, read_counts
from infra.fleet import look
from infra.log import get_logger
from infra.servers.services import Services
from schemas.fleet import FleetSnapshot, ready
from schemas.items import Label
from schemas.verdicts import Outcome

_INFINITE: Final = "+Inf"
_DEVICE: Final = {
    "batches": telemetry.DEVICE_BATCHES,
    "items": telemetry.DEVICE_PROMPTS,
    "rows": telemetry.DEVICE_ROWS,
    "tokens": telemetry.DEVICE_TOKENS,
    "padded_tokens": telemetry.DEVICE_PADDED_TOKENS,
    "busy_s": telemetry.DEVICE_BUSY,
    "budget_tokens": telemetry.DEVICE_BUDGET,
}
"""Metrics of a device, by the name of the figure in its worker's announcement."""
_FROM_ZERO: Final[tuple[tuple[Metric, tuple[str, ...]], ...]] = (
    *((telemetry.ITEMS_SETTLED, (Outcome.SCORED.value, label.value)) for label in Label),
    *(
        (telemetry.ITEMS_SETTLED, (outcome.value, telemetry.NO_LABEL))
        for outcome in (Outcome.UNPARSEABLE, Outcome.DEAD)
    ),
    (telemetry.ITEMS_CACHED, ()),
    (telemetry.DUPLICATES, ()),
    *((telemetry.TOKENS_SPENT, (kind,)) for kind in telemetry.TOKEN_KINDS),
    *((telemetry.RECONCILED, (action,)) for action in telemetry.RECONCILER_ACTIONS),
)
"""Counters of every queue that begin at zero, with the labels after guard and lane."""
_Labels = tuple[str, ...]

log = get_logger(__name__)


class FleetCollector(Collector):
    """Looks at the fleet again for every scrape. Thread-safe."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Family]:
        """The families of one scrape, as Prometheus' client wants them."""
        yield from fleet_page(look(self._services, at_once=True)).collect()


class Page(Collector):
    """One scrape's values of declared metrics."""

    def __init__(self) -> None:
        self._values: defaultdict[Metric, dict[_Labels, float]] = defaultdict(dict)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a value; label values in the declared order."""
        self._values[metric][labels] = value

    def zero(self, metric: Metric, *labels: str) -> None:
        """Begin a counter's series before its first count, or Prometheus would miss that one."""
        self._values[metric].setdefault(labels, 0.0)

    def count(self, fields: Mapping[str, str]) -> None:
        """Set what processes have counted in the coordination store."""
        for metric, labels, count in read_counts(fields):
            self.set(metric, count, *labels)

    def collect(self) -> Iterator[Family]:
        """The families, as Prometheus' client wants them."""
        for metric, values in self._values.items():
            if metric.kind is Kind.HISTOGRAM:  # counts of single buckets; Prometheus wants each with all below it
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                bounds = [*map(str, metric.buckets), _INFINITE]
                for labels in dict.fromkeys(series[:-1] for series in values):
                    counts = itertools.accumulate(values.get((*labels, str(at)), 0.0) for at in range(len(bounds)))
                    buckets = list(zip(bounds, counts, strict=True))
                    histogram.add_metric(labels, buckets, values.get((*labels, SUM), 0.0))
                yield histogram
                continue
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def fleet_page(fleet: FleetSnapshot) -> Page:
    """The metrics of the whole fleet, without those of a server that is away."""
    page = Page()
    for server in ("ledger", "broker"):
        page.set(telemetry.SERVER_UP, server not in fleet.away, server)
    for server, reason in fleet.away.items():
        log.warning("metrics_without", server=server, error=reason)
    if "broker" not in fleet.away:
        _set_broker(page, fleet)
    if "ledger" not in fleet.away:
        for queue in fleet.queues:
            page.set(telemetry.ITEMS_PENDING, queue.pending, queue.guard, queue.lane)
            page.set(telemetry.OLDEST_AGE, queue.pending_s, queue.guard, queue.lane)
        page.set(telemetry.DEAD_ITEMS, fleet.dead_items)
        page.set(telemetry.WEBHOOKS_PENDING, fleet.webhooks_pending)
        page.set(telemetry.WEBHOOKS_DUE_AGE, fleet.webhooks_due_s)
    return page


def _set_broker(page: Page, fleet: FleetSnapshot) -> None:
    for queue in fleet.queues:
        page.set(telemetry.QUEUE_CHUNKS, queue.waiting, queue.guard, queue.lane)
        page.set(telemetry.HELD_CHUNKS, queue.held, queue.guard, queue.lane)
        page.set(telemetry.CELERY_QUEUE_LENGTH, queue.waiting, queue_of(queue.guard, queue.lane))
    page.set(telemetry.CELERY_QUEUE_LENGTH, fleet.verdicts_waiting, VERDICTS)
    page.set(telemetry.CELERY_QUEUE_LENGTH, fleet.finalizing_waiting, FINALIZING)
    page.set(telemetry.VERDICT_CHUNKS, fleet.verdicts_waiting)
    page.set(telemetry.PARKED_MESSAGES, fleet.dead_letters)
    for guard in sorted({queue.guard for queue in fleet.queues}):
        page.set(telemetry.WORKERS, len(ready(fleet.announced, "worker", guard)), guard)
    page.set(telemetry.COLLECTORS, len(ready(fleet.announced, "collector")))
    page.set(telemetry.WEBHOOK_SENDERS, len(ready(fleet.announced, "webhooks")))
    for worker in fleet.of_kind("worker"):
        for name, metric in _DEVICE.items():
            if (value := getattr(worker, name)) is not None:
                page.set(metric, value, str(worker.guard), worker.id)
    page.count(fleet.counts)
    for queue in fleet.queues:
        for metric, labels in _FROM_ZERO:
            page.zero(metric, queue.guard, queue.lane, *labels)
    page.zero(telemetry.FINISHED_AGAIN)
