"""For those who run the gateway: is it alive, can it work, how does it fare. No key is asked for; no text is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Annotated, Any, Final, TypeVar

import redis
import sqlalchemy as sa
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from infra.errors import ServerError
from infra.ledger.intake import ledger_now
from infra.pressure import oldest_age_s
from producer.gateway.metrics import CONTENT_TYPE
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway, gateway_of
from schemas.messages import Lane

_ANSWER_WITHIN_S: Final = 3.0
_AWAY: Final = (redis.RedisError, sa.exc.SQLAlchemyError, ServerError, TimeoutError)

T = TypeVar("T")
router = APIRouter(tags=["operations"])
Here = Annotated[Gateway, Depends(gateway_of)]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(gateway: Here) -> dict[str, Any]:
    """Ledger and broker answer, so that items can be accepted; beside it, who would judge them."""
    ledger, broker = await asyncio.gather(
        _answers(gateway.pool.run(ledger_now, gateway.services.engine)),
        _answers(gateway.pool.run(_workers, gateway)),
    )
    checks = {"ledger": "away" if ledger is None else "ok", "broker": "away" if broker is None else "ok"}
    if ledger is None or broker is None:
        away = ", ".join(name for name, state in checks.items() if state == "away")
        raise ProblemError(503, "not-ready", f"away: {away}", headers={"Retry-After": "2"}, **checks)
    return {"status": "ok", **checks, **_who_judges(broker, gateway.default_guard)}


@router.get("/metrics")
async def metrics(gateway: Here) -> Response:
    """Prometheus metrics; what lies on the broker is left as it was while the broker is away."""
    gateway.metrics.waiting.set(gateway.awaited.count)
    try:
        await asyncio.wait_for(gateway.pool.run(_look_at_queues, gateway), _ANSWER_WITHIN_S)
    except _AWAY:
        gateway.metrics.workers.clear()
    return Response(gateway.metrics.render(), media_type=CONTENT_TYPE)


async def _answers(question: Awaitable[T]) -> T | None:
    """The answer to a question to a server, or None where it is away."""
    try:
        return await asyncio.wait_for(question, _ANSWER_WITHIN_S)
    except _AWAY:
        return None


def _workers(gateway: Gateway) -> list[dict[str, object]]:
    return gateway.board.workers()


def _who_judges(announced: list[dict[str, object]], default_guard: str) -> dict[str, Any]:
    guards = _ready_workers(announced)
    return {
        "guard": default_guard,
        "guard_served": bool(guards[default_guard]),
        "workers": dict(guards),
        "collectors": _ready_collectors(announced),
    }


def _ready_workers(announced: list[dict[str, object]]) -> Counter[str]:
    ready = [facts for facts in announced if facts.get("state") == "ready" and facts.get("kind") == "worker"]
    return Counter(str(facts.get("guard")) for facts in ready)


def _ready_collectors(announced: list[dict[str, object]]) -> int:
    return sum(facts.get("state") == "ready" and facts.get("kind") == "collector" for facts in announced)


def _look_at_queues(gateway: Gateway) -> None:
    metrics, board = gateway.metrics, gateway.board
    announced = board.workers()
    guards = _ready_workers(announced)
    metrics.workers.clear()
    for guard in {*guards, gateway.default_guard}:
        metrics.workers.labels(guard).set(guards[guard])
        for lane in Lane:
            metrics.queue_chunks.labels(guard, lane).set(board.queue_length(guard, lane))
            metrics.queue_age_s.labels(guard, lane).set(oldest_age_s(gateway.services, board, guard, lane))
    metrics.collectors.set(_ready_collectors(announced))
    metrics.verdict_chunks.set(board.verdicts_waiting())
