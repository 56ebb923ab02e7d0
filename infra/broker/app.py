"""The Celery application, its queues and every delivery setting, each with its reason.

Measurements behind the choices: the delivery notes in docs/architecture.md.
"""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

import kombu.serialization
import redis
from celery import Celery
from kombu import Queue
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from infra import tracing
from infra.errors import ServerError
from infra.retry import retry
from infra.settings import Settings
from schemas.messages import JudgeChunk, Lane, VerdictChunk

JUDGE: Final = "libra.judge"
SETTLE: Final = "libra.settle"
FINALIZE: Final = "libra.finalize"

VERDICTS: Final = "verdicts"
FINALIZING: Final = "finalizing"

TRACEPARENT: Final = "traceparent"
"""The header of W3C Trace Context."""

_SERIALIZER: Final = "libra-json"
_FORGET_AFTER_S: Final = 5


def queue_of(guard: str, lane: Lane) -> str:
    """The queue that carries one guard's chunks of one lane."""
    return f"guard.{guard}.{lane.value}"


def make_app(redis_url: str, settings: Settings) -> Celery:
    """A Celery application on this broker. It declares no task: entry points register what they run."""
    _register_serializer()
    app = Celery("libra", broker=broker_url(redis_url), set_as_current=False)
    app.conf.update(_delivery(settings))
    return app


def _delivery(settings: Settings) -> dict[str, Any]:
    return {
        "task_serializer": _SERIALIZER,
        "accept_content": [_SERIALIZER],  # JSON only, never pickle
        "task_ignore_result": True,  # verdicts travel by queue, the ledger is the truth
        "task_acks_late": True,  # a chunk is acknowledged after its verdicts are published
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure_or_timeout": False,  # a failed chunk stays pending for the reconciler
        "worker_prefetch_multiplier": 1,  # a consumer holds what its threads work on, no more
        "worker_enable_remote_control": False,  # nobody commands a worker through the broker
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # writes are idempotent: keep the device's work
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a daemon waits for its broker for ever
        "task_publish_retry": True,
        "task_publish_retry_policy": {
            "max_retries": None,
            "interval_start": 0.1,
            "interval_step": 0.2,
            "interval_max": 2,
        },
        "broker_transport_options": {
            "global_keyprefix": f"{settings.namespace}:",
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_interval": 5,  # stock kombu looks every ~100 s, so that a redelivery comes ~90 s late
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,  # none: a publish over a dead connection waits for ever
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    }


def _register_serializer() -> None:
    """JSON that leaves Chinese as it is: half the bytes of the escaped form."""
    kombu.serialization.register(
        _SERIALIZER,
        lambda content: json.dumps(content, ensure_ascii=False, separators=(",", ":")),
        json.loads,
        content_type="application/x-libra+json",
        content_encoding="utf-8",
    )


def worker_queues(*names: str) -> list[Queue]:
    """Queues for a consumer, declared as Celery wants them."""
    return [Queue(name, routing_key=name) for name in names]


def broker_url(redis_url: str) -> str:
    """A redis-py URL as a kombu URL. Only Unix sockets are written differently."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    query["virtual_host"] = query.pop("db", "0")
    account = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{account}{parts.path}?{urlencode(query)}"


def connect_redis(redis_url: str, *, wait_s: float = 0) -> redis.Redis:
    """A client that has answered once; it survives a server restart by itself.

    Raises:
        ServerError: no answer within `wait_s` seconds, or no Redis URL.
    """
    retries = max(1, int(wait_s / 0.5))
    try:
        client = redis.Redis.from_url(
            redis_url,
            decode_responses=True,
            socket_timeout=30,
            socket_connect_timeout=5,
            health_check_interval=25,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.1), retries),
            retry_on_error=[redis.ConnectionError],
        )
        client.ping()
    except ValueError as error:
        raise ServerError("LIBRA_REDIS_URL is not a Redis URL (redis://host:6379/0 or unix:///path)") from error
    except redis.RedisError as error:
        parts = urlsplit(redis_url)
        where = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
        raise ServerError(f"cannot reach Redis at {where}: {error}") from error
    return client


class Publisher:
    """Puts messages on queues; waits while the broker is away or full. User text stays out of headers and logs.

    Where traces are on, the current span's `traceparent` travels in the headers; bodies are the same with and without.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    def judge(self, chunk: JudgeChunk) -> None:
        """Enqueue a chunk on its guard's lane; the header lets the reconciler read its age without the body."""
        self._send(
            JUDGE,
            chunk.model_dump_json(),
            queue=queue_of(chunk.guard, chunk.lane),
            task_id=f"{chunk.chunk_id}/{chunk.attempt}",
            headers={"enqueued_at": chunk.enqueued_at},
        )

    def settle(self, chunk: VerdictChunk) -> None:
        """Enqueue verdicts for the collector; returns only once the broker has them."""
        self._send(SETTLE, chunk.model_dump_json(), queue=VERDICTS, task_id=f"{chunk.chunk_id}/{chunk.attempt}/v")

    def finalize(self, run_id: str) -> None:
        """Ask for a run's metrics."""
        self._send(FINALIZE, run_id, queue=FINALIZING, task_id=f"{run_id}/finalize")

    def _send(
        self, task: str, body: str, *, queue: str, task_id: str, headers: dict[str, object] | None = None
    ) -> None:
        traceparent = tracing.traceparent()
        if traceparent is not None:
            headers = {**(headers or {}), TRACEPARENT: traceparent}
        retry(
            lambda: self._app.send_task(
                task, args=[body], queue=queue, task_id=task_id, headers=headers, argsrepr="-", kwargsrepr="-"
            )
        )
