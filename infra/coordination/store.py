"""The coordination store on Redis: who works, who holds which chunk, what has settled, how long the queues are.

Everything here may be lost without harm: it saves device time and shortens waits, but the promise that
each item settles exactly once rests on the ledger alone.
"""

from __future__ import annotations

import redis

from infra.broker.app import connect_redis
from infra.broker.dead_letters import DeadLetters
from infra.broker.queues import Queues
from infra.coordination.counters import Counters
from infra.coordination.leases import Leases
from infra.coordination.notices import Notices
from infra.coordination.presence import Presence
from infra.settings import Settings


class CoordinationStore:
    """One handle for its parts. All keys share the namespace prefix and none outlives its use."""

    def __init__(self, client: redis.Redis, *, namespace: str, remember_s: int) -> None:
        prefix = f"{namespace}:board:"
        self.leases = Leases(client, prefix, remember_s=remember_s)
        self.notices = Notices(client, prefix, remember_s=remember_s)
        self.presence = Presence(client, prefix)
        self.counters = Counters(client, prefix)
        self.queues = Queues(client, f"{namespace}:")
        self.dead_letters = DeadLetters(client, prefix)

    def give_back(self, queue: str, holder: str) -> int:
        """Put what a dead consumer held back on its queue, where it is next; returns how many chunks it was.

        Call it only when the consumer is surely dead, or its chunks are judged twice.
        """
        return self.queues.requeue(queue, self.leases.drop(queue, holder))


def open_coordination(redis_url: str, settings: Settings) -> CoordinationStore:
    """The coordination store of the configured namespace.

    Raises:
        ServerError: Redis does not answer in time.
    """
    client = connect_redis(redis_url, wait_s=settings.wait_for_servers_s)
    return CoordinationStore(client, namespace=settings.namespace, remember_s=2 * settings.visibility_timeout_s)
