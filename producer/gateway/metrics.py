"""Every metric of the gateway, declared in one place. No user text, no id, no key ever is a label."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
_SIZE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class GatewayMetrics:
    """One gateway's metrics, on a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "libra_gateway_requests", "Requests answered", ["route", "method", "status"], registry=registry
        )
        self.request_s = Histogram(
            "libra_gateway_request_seconds",
            "From the request's arrival to the end of its answer",
            ["route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.accepted = Counter(
            "libra_gateway_items_accepted", "Items committed", ["tenant", "lane"], registry=registry
        )
        self.refused = Counter(
            "libra_gateway_requests_refused",
            "Requests answered 429, by reason",
            ["tenant", "reason"],
            registry=registry,
        )
        self.commit_items = Histogram(
            "libra_gateway_commit_items", "Items per ledger commit", buckets=_SIZE_BUCKETS, registry=registry
        )
        self.verdict_wait_s = Histogram(
            "libra_gateway_verdict_wait_seconds",
            "From an item's commit to its verdict, for requests that wait",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.waiting = Gauge("libra_gateway_waiting_items", "Items that a request waits for", registry=registry)
        self.queue_chunks = Gauge("libra_queue_chunks", "Chunks queued", ["guard", "lane"], registry=registry)
        self.queue_age_s = Gauge(
            "libra_queue_age_seconds", "Age of the oldest queued chunk", ["guard", "lane"], registry=registry
        )
        self.verdict_chunks = Gauge("libra_verdict_chunks", "Judged chunks without a collector", registry=registry)
        self.workers = Gauge("libra_workers", "Workers that are ready", ["guard"], registry=registry)
        self.collectors = Gauge("libra_collectors", "Collectors that are ready", registry=registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
