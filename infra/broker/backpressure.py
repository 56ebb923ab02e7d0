"""Back-pressure of a queue: a producer waits where it takes no more, a gateway answers 429."""

from __future__ import annotations

from infra.coordination.store import CoordinationStore
from infra.ledger.engine import ledger_now
from infra.servers.services import Services
from schemas.messages import Lane
from schemas.runs import RunSpec


def has_room(services: Services, spec: RunSpec) -> bool:
    """True if a run's queue and the verdicts' are below the high-water marks, in chunks and in age of the oldest."""
    return held_back(services, spec) is None


def held_back(services: Services, spec: RunSpec) -> str | None:
    """Why a run's producer has to wait, for a person; None where there is room."""
    coordination, settings = services.coordination, services.settings
    queued = coordination.queues.length(spec.guard, spec.lane)
    unsettled = coordination.queues.verdicts_waiting()
    if queued + unsettled > settings.high_water_chunks:
        return f"{queued:,} chunks of {spec.guard} wait to be judged and {unsettled:,} to be settled"
    age_s = oldest_age_s(services, coordination, spec.guard, spec.lane)
    if age_s > settings.high_water_age_s:
        return f"the oldest chunk of {spec.guard} has waited for {age_s / 60:,.0f} min"
    return None


def oldest_age_s(services: Services, coordination: CoordinationStore, guard: str, lane: Lane) -> float:
    """Seconds that the message that is delivered next has waited; 0 where none waits."""
    oldest = coordination.queues.oldest_enqueued_at(guard, lane)
    if not oldest:  # empty, or the next message is one that no process of ours wrote
        return 0.0
    return max(0.0, ledger_now(services.engine) - oldest)
