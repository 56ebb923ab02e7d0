"""Kombu's Redis transport without one of its habits. Knows nothing of our messages or queues.

Stock kombu makes a new Redis client for each message that it notes, acknowledges or publishes, and every client fills
a table of some hundred parsers of replies: a tenth of what a live item cost its consumer. Here a channel keeps one.
A client holds no connection, only the pool, and may be used by any thread.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection


class _Connection(Connection):  # type: ignore[misc]
    def get_transport_cls(self) -> type[Any]:
        return _with_lasting_clients(super().get_transport_cls())


class LastingClients(AMQP):  # type: ignore[misc]
    """For `Celery(amqp=…)`: all connections of the app are made of channels that keep their client."""

    Connection = _Connection


@cache
def _with_lasting_clients(transport: type[Any]) -> type[Any]:
    if getattr(transport.Channel, "keeps_its_client", False):
        return transport

    class LastingChannel(transport.Channel):  # type: ignore[misc, name-defined]
        keeps_its_client = True
        _lasting: Any = None

        def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - kombu's signature
            if asynchronous:
                return super()._create_client(asynchronous=True)
            if self._lasting is None or self._lasting.connection_pool is not self.pool:
                self._lasting = super()._create_client()
            return self._lasting

    return type("LastingTransport", (transport,), {"Channel": LastingChannel})
