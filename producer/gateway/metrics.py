"""One gateway process's own metrics, as `infra.coordination.counters` declares them."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from infra.coordination import counters as telemetry
from infra.coordination.counters import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class GatewayMetrics:
    """On a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(metric: Metric) -> Counter:
            return Counter(metric.name, metric.help, metric.labels, registry=registry)

        def histogram(metric: Metric) -> Histogram:
            return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)

        self.requests = counter(telemetry.GATEWAY_REQUESTS)
        self.request_s = histogram(telemetry.GATEWAY_REQUEST)
        self.accepted = counter(telemetry.GATEWAY_ACCEPTED)
        self.refused = counter(telemetry.GATEWAY_REFUSED)
        self.commit_items = histogram(telemetry.GATEWAY_COMMIT)
        self.verdict_wait_s = histogram(telemetry.GATEWAY_VERDICT_WAIT)
        waiting = telemetry.GATEWAY_WAITING
        self.waiting = Gauge(waiting.name, waiting.help, waiting.labels, registry=registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
