"""Values of declared metrics, gathered and written in Prometheus' form. Knows no board and no ledger."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from infra.coordination.counters import SUM, Kind, Metric, read_counts

_INFINITE: Final = "+Inf"
_Labels = tuple[str, ...]


class Page(Collector):
    """One scrape's values."""

    def __init__(self) -> None:
        self._values: defaultdict[Metric, dict[_Labels, float]] = defaultdict(dict)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Label values in the declared order."""
        self._values[metric][labels] = value

    def zero(self, metric: Metric, *labels: str) -> None:
        """A counter's series from before its first count, or Prometheus would miss that one."""
        self._values[metric].setdefault(labels, 0.0)

    def count(self, fields: Mapping[str, str]) -> None:
        """What processes counted on the board."""
        for metric, labels, count in read_counts(fields):
            self.set(metric, count, *labels)

    def collect(self) -> Iterator[Family]:
        """As Prometheus' client wants it."""
        for metric, values in self._values.items():
            if metric.kind is Kind.HISTOGRAM:
                yield _histogram(metric, values)
                continue
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def _histogram(metric: Metric, values: Mapping[_Labels, float]) -> HistogramMetricFamily:
    """A histogram from counts of single buckets; Prometheus wants each with all below it."""
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.buckets), _INFINITE]
    for labels in dict.fromkeys(series[:-1] for series in values):
        counts = itertools.accumulate(values.get((*labels, str(at)), 0.0) for at in range(len(bounds)))
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), values.get((*labels, SUM), 0.0))
    return family
