"""The one look at the fleet, which status, console, exporter and doctor show each in its own way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, TypeVar

import redis
import sqlalchemy as sa

from infra.coordination.store import BrokerState, QueueState
from infra.errors import ServerError
from infra.ledger.recovery import LaneKey
from infra.ledger.stats import Backlog, PendingItems, read_backlog
from infra.servers.services import Services
from schemas.fleet import Announcement, FleetSnapshot, Queue, Server
from schemas.messages import Lane

AWAY: Final = (redis.RedisError, sa.exc.SQLAlchemyError, ServerError)
"""The errors of a server that does not answer."""

_AT_ONCE_S: Final = 2.5
_NO_BACKLOG: Final = Backlog(0.0, {}, (), 0, 0, 0, 0.0)
_NO_BROKER: Final = BrokerState({}, 0, 0, 0, 0, {})

T = TypeVar("T")


def look(services: Services, *, at_once: bool = False, guards: Collection[str] = ()) -> FleetSnapshot:
    """The fleet now, from one question to the ledger and three to the broker.

    Args:
        services: the servers; one that does not answer is named as away, and what it knows is left out.
        at_once: wait for no server, and give up a look at the ledger that takes longer than 2.5 s.
        guards: guards whose lanes are shown even if no worker serves them and nothing is pending.
    """
    away: dict[Server, str] = {}
    within_s = _AT_ONCE_S if at_once else None
    backlog = _ask("ledger", away, lambda: read_backlog(services.engine, within_s=within_s)) or _NO_BACKLOG
    lanes = {LaneKey(guard, lane) for guard in guards for lane in Lane} | set(backlog.pending)

    def ask_broker() -> tuple[list[Announcement], BrokerState]:
        coordination = services.coordination_at_once if at_once else services.coordination
        announced = coordination.presence.announced()
        served = {str(process.guard) for process in announced if process.kind == "worker"}
        return announced, coordination.broker_state(
            sorted(lanes | {LaneKey(guard, lane) for guard in served for lane in Lane})
        )

    announced, broker = _ask("broker", away, ask_broker) or ([], _NO_BROKER)
    queues = []
    for guard, lane in sorted(lanes | set(broker.queues)):
        state = broker.queues.get(LaneKey(guard, lane), QueueState())
        pending = backlog.pending.get(LaneKey(guard, lane), PendingItems())
        queues.append(
            Queue(
                guard=guard,
                lane=lane,
                waiting=state.waiting,
                held=state.held,
                oldest_s=max(0.0, backlog.now - state.next_at) if backlog.now and state.next_at else None,
                pending=pending.items,
                pending_s=pending.oldest_s,
            )
        )
    return FleetSnapshot(
        away=away,
        queues=tuple(queues),
        announced=tuple(announced),
        verdicts_waiting=broker.verdicts_waiting,
        finalizing_waiting=broker.finalizing_waiting,
        dead_letters=broker.dead_letters,
        verdicts_kept=broker.verdicts_kept,
        counts=broker.counts,
        runs=backlog.runs,
        dead_items=backlog.dead_items,
        webhooks_pending=backlog.webhooks_pending,
        webhooks_due=backlog.webhooks_due,
        webhooks_due_s=backlog.webhooks_due_s,
    )


def _ask(server: Server, away: dict[Server, str], question: Callable[[], T]) -> T | None:
    try:
        return question()
    except redis.RedisError as error:
        away[server] = f"lost Redis: {error}"
    except sa.exc.SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or type(error).__name__
        away[server] = f"lost Postgres: {str(reason).strip()}"
    except ServerError as error:
        away[server] = str(error)
    return None
