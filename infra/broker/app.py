"""The Celery application, its queues and every delivery setting, each with its reason.

Measurements behind the choices: the delivery notes in docs/architecture.md.
"""

from __future__ import annotations

import json
from typing import Any, Final

import kombu.serialization
import redis
from celery import Celery
from kombu import Queue
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from infra.broker.address import parse_redis
from infra.errors import ServerError
from infra.settings import Settings
from schemas.messages import Lane

JUDGE: Final = "libra.judge"
SETTLE: Final = "libra.settle"
FINALIZE: Final = "libra.finalize"

VERDICTS: Final = "verdicts"
FINALIZING: Final = "finalizing"

TRACEPARENT: Final = "traceparent"
"""The header of W3C Trace Context."""

CONTENT_TYPE: Final = "application/x-libra+json"
_SERIALIZER: Final = "libra-json"


def queue_of(guard: str, lane: Lane) -> str:
    """The queue that carries one guard's chunks of one lane."""
    return f"guard.{guard}.{lane.value}"


def make_app(redis_url: str, settings: Settings, *, records_unacked: bool = True) -> Celery:
    """A Celery application on this broker. It declares no task: entry points register what they run.

    Without a record of unacknowledged messages on Redis, each of them costs two round trips less; where their consumer
    is killed, the reconciler finds what was lost, long before Celery would redeliver it (docs/decisions/0031).
    """
    address = parse_redis(redis_url)
    delivery: dict[str, Any] = {
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
        "broker_transport_options": {
            "global_keyprefix": f"{settings.namespace}:",
            "visibility_timeout": settings.visibility_timeout_s,
            "ack_emulation": records_unacked,
            "unacked_restore_interval": 5,  # stock kombu looks every ~100 s, so that a redelivery comes ~90 s late
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,  # none: a publish over a dead connection waits for ever
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            **address.broker_options(),
        },
    }
    kombu.serialization.register(_SERIALIZER, to_json, json.loads, content_type=CONTENT_TYPE, content_encoding="utf-8")
    app = Celery("libra", broker=address.broker_url(), set_as_current=False)
    app.conf.update(delivery)
    return app


def to_json(content: object) -> str:
    """JSON that leaves Chinese as it is: half the bytes of the escaped form."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def worker_queues(*names: str) -> list[Queue]:
    """Queues for a consumer, declared as Celery wants them."""
    return [Queue(name, routing_key=name) for name in names]


def broker_url(redis_url: str) -> str:
    """The address as kombu spells it; TLS is verified unless the address says otherwise.

    Raises:
        ServerError: no Redis URL.
    """
    return parse_redis(redis_url).broker_url()


def redis_client(redis_url: str, *, wait_s: float = 0) -> redis.Redis:
    """A client that survives a server restart or a failover by itself; the server need not be there yet.

    Raises:
        ServerError: no Redis URL.
    """
    return parse_redis(redis_url).client(
        decode_responses=True,
        socket_timeout=30,
        socket_connect_timeout=5,
        health_check_interval=25,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.1), max(1, int(wait_s / 0.5))),
        retry_on_error=[redis.ConnectionError],
    )


def connect_redis(redis_url: str, *, wait_s: float = 0) -> redis.Redis:
    """A client that has answered once.

    Raises:
        ServerError: no answer within `wait_s` seconds, or no Redis URL.
    """
    client = redis_client(redis_url, wait_s=wait_s)
    try:
        client.ping()
    except (redis.RedisError, OSError) as error:  # OSError: a certificate's file is missing
        raise ServerError(f"cannot reach Redis at {parse_redis(redis_url).shown}: {error}") from error
    return client
