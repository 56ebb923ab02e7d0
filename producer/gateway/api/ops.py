"""For those who run the gateway: is it alive, can it work, how does it fare. No key is asked for; no text is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import generate_latest

from infra.ledger.engine import ledger_now
from producer.exporter.fleet import AWAY, look, nothing_known
from producer.gateway.metrics import CONTENT_TYPE
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway, gateway_of
from schemas.fleet import Announcement, ready

_ANSWER_WITHIN_S: Final = 3.0

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
    """Prometheus metrics: this gateway's own, and the whole fleet's, without what lies on a server that is away."""
    gateway.metrics.waiting.set(gateway.waiting)
    fleet = await _answers(gateway.pool.run(_fleet, gateway))
    own = gateway.metrics.render()
    return Response(own + (generate_latest(nothing_known()) if fleet is None else fleet), media_type=CONTENT_TYPE)


async def _answers(question: Awaitable[T]) -> T | None:
    """The answer to a question to a server, or None where it is away."""
    try:
        return await asyncio.wait_for(question, _ANSWER_WITHIN_S)
    except (*AWAY, TimeoutError):
        return None


def _workers(gateway: Gateway) -> list[Announcement]:
    return gateway.coordination.presence.announced()


def _who_judges(announced: list[Announcement], default_guard: str) -> dict[str, Any]:
    guards = Counter(str(worker.guard) for worker in ready(announced, "worker"))
    return {
        "guard": default_guard,
        "guard_served": bool(guards[default_guard]),
        "workers": dict(guards),
        "collectors": len(ready(announced, "collector")),
    }


def _fleet(gateway: Gateway) -> bytes:
    return generate_latest(look(gateway.services, lambda: gateway.coordination, [gateway.default_guard]))
