"""Every metric of the fleet, declared in one place, the tally of a process, and the fleet's counters on Redis.

It knows no Prometheus client and no ledger. No label is a user's text, an item's or a run's id, or a key.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, cast

if TYPE_CHECKING:
    import redis


class Kind(StrEnum):
    """As Prometheus calls them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric. Units are in its name; `buckets` are a histogram's upper bounds, the infinite one left out."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_KEPT_S: Final = 30 * 86_400
_LANE: Final = ("guard", "lane")
_DEVICE: Final = ("guard", "worker")
_LATENCY_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STAGE_S: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

# From the ledger, at the time of the scrape.
ITEMS_PENDING: Final = Metric(
    "libra_items_pending", Kind.GAUGE, "Items accepted and not settled, those that consumers hold included", _LANE
)
OLDEST_AGE: Final = Metric(
    "libra_queue_oldest_age_seconds", Kind.GAUGE, "Since the oldest pending item was enqueued, held or not", _LANE
)
DEAD_ITEMS: Final = Metric("libra_dead_items", Kind.GAUGE, "Dead items of the runs that the ledger holds")
WEBHOOKS_PENDING: Final = Metric("libra_webhooks_pending", Kind.GAUGE, "Webhooks not yet delivered or given up")
WEBHOOKS_DUE_AGE: Final = Metric(
    "libra_webhooks_due_age_seconds", Kind.GAUGE, "Since the oldest webhook that a sender may take became due"
)

# From the coordination store, at the time of the scrape.
QUEUE_CHUNKS: Final = Metric(
    "libra_queue_chunks", Kind.GAUGE, "Chunks queued, without those that consumers hold", _LANE
)
HELD_CHUNKS: Final = Metric("libra_queue_held_chunks", Kind.GAUGE, "Chunks that live consumers hold", _LANE)
CELERY_QUEUE_LENGTH: Final = Metric(
    "celery_queue_length", Kind.GAUGE, "Messages on a queue, by celery-exporter's name", ("queue_name",)
)
VERDICT_CHUNKS: Final = Metric("libra_verdict_chunks", Kind.GAUGE, "Judged chunks that no collector has taken")
PARKED_MESSAGES: Final = Metric(
    "libra_parked_messages", Kind.GAUGE, "Messages in the dead-letter queue, which no process could read"
)
WORKERS: Final = Metric("libra_workers", Kind.GAUGE, "Devices whose worker is ready", ("guard",))
COLLECTORS: Final = Metric("libra_collectors", Kind.GAUGE, "Collectors that are ready")
WEBHOOK_SENDERS: Final = Metric("libra_webhook_senders", Kind.GAUGE, "Senders of webhooks that are ready")

# From the workers' announcements; they count from zero again with each device process.
DEVICE_BATCHES: Final = Metric("libra_device_batches_total", Kind.COUNTER, "Batches run", _DEVICE)
DEVICE_PROMPTS: Final = Metric("libra_device_prompts_total", Kind.COUNTER, "Prompts answered", _DEVICE)
DEVICE_ROWS: Final = Metric(
    "libra_device_rows_total", Kind.COUNTER, "Prompts run: equal ones that wait together run once", _DEVICE
)
DEVICE_TOKENS: Final = Metric("libra_device_tokens_total", Kind.COUNTER, "Tokens run, padding left out", _DEVICE)
DEVICE_PADDED_TOKENS: Final = Metric(
    "libra_device_padded_tokens_total", Kind.COUNTER, "Tokens run, padding included", _DEVICE
)
DEVICE_BUSY: Final = Metric("libra_device_busy_seconds_total", Kind.COUNTER, "Time spent in batches", _DEVICE)
DEVICE_BUDGET: Final = Metric("libra_device_budget_tokens", Kind.GAUGE, "Token budget of a batch as it is now", _DEVICE)

# Counted by those who did it, and added up on Redis once a second.
ITEMS_SETTLED: Final = Metric("libra_items_settled_total", Kind.COUNTER, "Items settled", (*_LANE, "outcome", "label"))
ITEMS_CACHED: Final = Metric(
    "libra_items_cached_total", Kind.COUNTER, "Items settled by an answer from the cache", _LANE
)
DUPLICATES: Final = Metric(
    "libra_duplicates_suppressed_total", Kind.COUNTER, "Verdicts on items that had settled before", _LANE
)
TOKENS_SPENT: Final = Metric(
    "libra_tokens_spent_total", Kind.COUNTER, "Tokens that settled chunks cost", (*_LANE, "kind")
)
STAGE: Final = Metric(
    "libra_stage_seconds", Kind.HISTOGRAM, "Time that settled chunks took, by stage", (*_LANE, "stage"), _STAGE_S
)
RECONCILED: Final = Metric(
    "libra_reconciler_chunks_total", Kind.COUNTER, "Lost chunks that the reconciler dealt with", (*_LANE, "action")
)
FINISHED_AGAIN: Final = Metric(
    "libra_reconciler_runs_total", Kind.COUNTER, "Runs whose metrics the reconciler asked for again"
)

SERVER_UP: Final = Metric(
    "libra_server_up", Kind.GAUGE, "1 if this scrape has the figures of the ledger or the broker, else 0", ("server",)
)

NO_LABEL: Final = "none"
"""Label of an item that has none: it is unparseable or dead."""
STAGES: Final = ("queue", "render", "device")
TOKEN_KINDS: Final = ("prompt", "new")
REQUEUED, GIVEN_UP = RECONCILER_ACTIONS = ("requeued", "given_up")

FLEET: Final = (
    *(ITEMS_PENDING, OLDEST_AGE, DEAD_ITEMS, WEBHOOKS_PENDING, WEBHOOKS_DUE_AGE),
    *(QUEUE_CHUNKS, HELD_CHUNKS, CELERY_QUEUE_LENGTH, VERDICT_CHUNKS, PARKED_MESSAGES),
    *(WORKERS, COLLECTORS, WEBHOOK_SENDERS),
    *(DEVICE_BATCHES, DEVICE_PROMPTS, DEVICE_ROWS, DEVICE_TOKENS, DEVICE_PADDED_TOKENS, DEVICE_BUSY, DEVICE_BUDGET),
    *(ITEMS_SETTLED, ITEMS_CACHED, DUPLICATES, TOKENS_SPENT, STAGE, RECONCILED, FINISHED_AGAIN),
    SERVER_UP,
)
"""The metrics of the whole fleet, which every scrape has, from the exporter and from any gateway."""

# One gateway process's own.
GATEWAY_REQUESTS: Final = Metric(
    "libra_gateway_requests_total", Kind.COUNTER, "Requests answered", ("route", "method", "status")
)
GATEWAY_REQUEST: Final = Metric(
    "libra_gateway_request_seconds",
    Kind.HISTOGRAM,
    "From the request's arrival to the end of its answer",
    ("route",),
    _LATENCY_S,
)
GATEWAY_ACCEPTED: Final = Metric(
    "libra_gateway_items_accepted_total", Kind.COUNTER, "Items committed", ("tenant", "lane")
)
GATEWAY_REFUSED: Final = Metric(
    "libra_gateway_requests_refused_total", Kind.COUNTER, "Requests answered 429, by reason", ("tenant", "reason")
)
GATEWAY_COMMIT: Final = Metric("libra_gateway_commit_items", Kind.HISTOGRAM, "Items per ledger commit", buckets=_SIZES)
GATEWAY_VERDICT_WAIT: Final = Metric(
    "libra_gateway_verdict_wait_seconds",
    Kind.HISTOGRAM,
    "From an item's commit to its verdict, for requests that wait",
    buckets=_LATENCY_S,
)
GATEWAY_WAITING: Final = Metric("libra_gateway_waiting_items", Kind.GAUGE, "Items that a request waits for")

GATEWAY: Final = (
    *(GATEWAY_REQUESTS, GATEWAY_REQUEST, GATEWAY_ACCEPTED, GATEWAY_REFUSED),
    *(GATEWAY_COMMIT, GATEWAY_VERDICT_WAIT, GATEWAY_WAITING),
)

_BY_NAME: Final = {metric.name: metric for metric in FLEET}
SUM: Final = "sum"
"""The sum of a histogram's observations, in place of a bucket's number."""


class Tally:
    """Counts of the last moments by series, to be added to the fleet's counts in one go. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Count; label values in the declared order."""
        if by:
            self._counts[metric.name, *labels] += by

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Put a value into its bucket of a histogram."""
        self._counts[metric.name, *labels, str(bisect_left(metric.buckets, value))] += 1
        self._counts[metric.name, *labels, SUM] += value

    def fields(self) -> dict[str, float]:
        """The counts by the fields under which `Counters` adds them up."""
        return {json.dumps(series, ensure_ascii=False): count for series, count in self._counts.items()}


class Counters:
    """The fleet's counts, added up on Redis; from zero again where Redis was lost, or after a month without one."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._redis = client
        self.key = f"{prefix}counts"

    def add(self, tally: Tally) -> None:
        """Add what a process counted."""
        counts = tally.fields()
        if not counts:
            return
        with self._redis.pipeline(transaction=False) as pipe:
            for field, count in counts.items():
                pipe.hincrbyfloat(self.key, field, count)
            pipe.expire(self.key, _KEPT_S)
            pipe.execute()

    def read(self) -> dict[str, str]:
        """The counts by field, as `read_counts` takes them."""
        return cast("dict[str, str]", self._redis.hgetall(self.key))


def read_counts(fields: Mapping[str, str]) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
    """Metric, label values and count of each field; a histogram's end in the number of a bucket, or `SUM`.

    Counts that another version keeps differently are left out.
    """
    for field, count in fields.items():
        name, *labels = json.loads(field)
        metric = _BY_NAME.get(name)
        if metric is not None and len(labels) == len(metric.labels) + (metric.kind is Kind.HISTOGRAM):
            yield metric, tuple(labels), float(count)
