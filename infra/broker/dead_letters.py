"""A Celery consumer that parks what it cannot read, where the stock one drops it, or dies of it.

Stock Celery acknowledges an unreadable message and prints its body to its log, where user text does not belong;
in stock kombu what is no message at all breaks out of the event loop, which ends the consumer and loses the message.
Both are met here, each while the message is still in hand.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Final, cast

import redis
from celery.worker.consumer import Consumer
from kombu import Connection, Message
from kombu.exceptions import ContentDisallowed, DecodeError
from redis.connection import Connection as Socket

from infra.log import get_logger
from infra.retry import FULL, retry

Park = Callable[[str, str, str], None]
"""Takes queue, reason and body (base64 where it is not text)."""

_MALFORMED: Final = (
    *(ValueError, TypeError, KeyError, AttributeError, RecursionError),
    *(DecodeError, ContentDisallowed),
)
"""What reading malformed data raises; never a broken connection."""

log = get_logger(__name__)


def parking_consumer(park: Park) -> type[Any]:
    """A Consumer class for `app.Worker(consumer_cls=...)` that hands unreadable messages to `park`."""
    return type("ParkingConsumer", (_ParkingConsumer,), {"set_aside": staticmethod(park)})


class _ParkingConsumer(Consumer):  # type: ignore[misc]
    set_aside: Park

    def connection_for_read(self, heartbeat: float | None = None) -> Connection:
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        connection.transport_cls = _vetting(connection.get_transport_cls(), self.set_aside)
        return self.ensure_connected(connection)

    def create_task_handler(self, *args: object, **options: object) -> Callable[[Message], None]:
        handle = super().create_task_handler(*args, **options)

        def guarded(message: Message) -> None:
            try:
                if message.headers["task"] in self.strategies:
                    _require_one_text(message)
                handle(message)
            except _MALFORMED as error:
                self._park(message, f"malformed task message: {type(error).__name__}")

        return guarded

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._park(message, f"undecodable: {type(exc).__name__}")

    def on_unknown_message(self, body: object, message: Message) -> None:  # noqa: ARG002 - Celery's signature
        self._park(message, "not a task message")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._park(message, "unknown task")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        self._park(message, f"malformed task message: {type(exc).__name__}")

    def _park(self, message: Message, reason: str) -> None:
        _park(self.set_aside, str((message.delivery_info or {}).get("routing_key")), reason, message.body)
        message.ack()


def _require_one_text(message: Message) -> None:
    """See that the arguments are what all our tasks take: one string.

    Others would fail in the pool, where some are rejected without a word and some are never acknowledged.
    """
    (body,), options, _ = message.payload
    if not isinstance(body, str) or options:
        raise TypeError("one string is expected")


def _vetting(transport: type[Any], park: Park) -> type[Any]:
    """A kombu Redis transport that parks what is no message as soon as it is popped from its queue."""

    class PatientQoS(transport.Channel.QoS):  # type: ignore[misc, name-defined]
        def append(self, message: Message, delivery_tag: str) -> None:
            """Note what was popped; while Redis is full that waits, or the message would be lost."""
            note = super().append
            retry(lambda: note(message, delivery_tag), errors=FULL)

    class VettingChannel(_keeping_its_client(transport.Channel)):  # type: ignore[misc]
        QoS = PatientQoS

        def _queue_bind(self, *args: object) -> None:
            bind = super()._queue_bind
            retry(lambda: bind(*args), errors=FULL)

        def _get_client(self) -> Callable[..., redis.Redis]:
            make_client = super()._get_client()

            def vetting_client(*args: object, **options: object) -> redis.Redis:
                client: Any = make_client(*args, **options)
                read = client.parse_response

                def parse_response(socket: Socket, command: str, **more: object) -> object:
                    response = read(socket, command, **more)
                    if command == "BRPOP" and response and not _is_message(self, response[1]):
                        _park(park, response[0].decode(), "not a message", response[1])
                        return None  # as if nothing had come
                    return response

                client.parse_response = parse_response
                return cast("redis.Redis", client)

            return vetting_client

    return type("VettingTransport", (transport,), {"Channel": VettingChannel})


def _keeping_its_client(channel: type[Any]) -> type[Any]:
    """This channel with one Redis client, where kombu makes one for each note and each acknowledgement.

    A client holds the pool and no connection, so that any thread may use it (docs/decisions/0026).
    """

    class KeepingChannel(channel):  # type: ignore[misc]
        _kept: Any = None

        def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - kombu's signature
            if asynchronous:
                return super()._create_client(asynchronous=True)
            if self._kept is None or self._kept.connection_pool is not self.pool:
                self._kept = super()._create_client()
            return self._kept

    return KeepingChannel


def _is_message(channel: object, raw: bytes) -> bool:
    """Whether kombu can make a message of it, and acknowledge that message later."""
    try:
        delivery = channel.Message(json.loads(raw), channel=channel).delivery_info  # type: ignore[attr-defined]
        return isinstance(delivery["exchange"], str) and isinstance(delivery["routing_key"], str)
    except _MALFORMED:
        return False


def _park(park: Park, queue: str, reason: str, body: object) -> None:
    log.error("message_parked", queue=queue, reason=reason)
    park(queue, reason, _text(body))


def _text(body: object) -> str:
    if not isinstance(body, bytes):
        return str(body)
    try:
        return body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()
