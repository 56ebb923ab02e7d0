"""Back-pressure: whether a queue takes more. The producer waits where it does not, a gateway answers 429."""

from __future__ import annotations

from infra.ledger.intake import ledger_now
from infra.services import Services
from schemas.runs import RunSpec


def has_room(services: Services, spec: RunSpec) -> bool:
    """Whether a run's queue and the verdicts' are below the high-water marks, in chunks and in age of the oldest."""
    board, settings = services.board, services.settings
    if board.queue_length(spec.guard, spec.lane) + board.verdicts_waiting() > settings.high_water_chunks:
        return False
    oldest = board.oldest_enqueued_at(spec.guard, spec.lane)
    if not oldest:  # empty, or the next message is one that nobody here wrote
        return True
    return ledger_now(services.engine) - oldest <= settings.high_water_age_s
