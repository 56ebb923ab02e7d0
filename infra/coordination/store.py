"""The coordination store on Redis: who works, who holds which chunk, what has settled, how long the queues are.

Everything here may be lost without harm: it saves device time and shortens waits, but the promise that
each item settles exactly once rests on the ledger alone. Nor is anything here ahead of the ledger for long: what a
failover lost there is found pending, and the notes that say otherwise are taken back (`Notices.forget`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import redis

from infra.broker.app import FINALIZING, VERDICTS, connect_redis, queue_of
from infra.broker.dead_letters import DeadLetters
from infra.broker.queues import Queues, enqueued_at
from infra.coordination.counters import Counters
from infra.coordination.leases import Leases
from infra.coordination.notices import Notices
from infra.coordination.presence import Presence
from infra.settings import Settings
from schemas.messages import Lane


class QueueState(NamedTuple):
    """Chunks that wait in a queue and that consumers hold, and the enqueue time of the one that is delivered next."""

    waiting: int = 0
    held: int = 0
    next_at: float | None = None


class BrokerState(NamedTuple):
    """The queues of the lanes that were asked for, and what a fleet has one of."""

    queues: Mapping[tuple[str, Lane], QueueState]
    verdicts_waiting: int
    finalizing_waiting: int
    dead_letters: int
    verdicts_kept: int
    counts: dict[str, str]


class CoordinationStore:
    """One handle for its parts. All keys share the namespace prefix and none outlives its use."""

    def __init__(self, client: redis.Redis, *, namespace: str, remember_s: int) -> None:
        self._redis = client
        self._namespace = f"{namespace}:"
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

    def broker_state(self, lanes: Sequence[tuple[str, Lane]]) -> BrokerState:
        """Everything that a look at the fleet asks of queues and counts, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in (queue_of(guard, lane) for guard, lane in lanes):
                pipe.llen(self._namespace + queue)
                pipe.eval(*self.leases.held_query(queue))
                pipe.lindex(self._namespace + queue, -1)
            pipe.llen(self._namespace + VERDICTS)
            pipe.llen(self._namespace + FINALIZING)
            pipe.llen(self.dead_letters.key)
            pipe.hlen(self.dead_letters.verdicts_key)
            pipe.hgetall(self.counters.key)
            *queues, verdicts, finalizing, dead_letters, kept, counts = pipe.execute()
        states = (
            QueueState(waiting, len(held), enqueued_at(oldest) if oldest else None)
            for waiting, held, oldest in zip(queues[::3], queues[1::3], queues[2::3], strict=True)
        )
        return BrokerState(dict(zip(lanes, states, strict=True)), verdicts, finalizing, dead_letters, kept, counts)


def open_coordination(redis_url: str, settings: Settings) -> CoordinationStore:
    """The coordination store of the configured namespace.

    Raises:
        ServerError: Redis does not answer in time.
    """
    client = connect_redis(redis_url, wait_s=settings.wait_for_servers_s)
    return CoordinationStore(client, namespace=settings.namespace, remember_s=2 * settings.visibility_timeout_s)
