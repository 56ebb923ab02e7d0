"""For those who run the gateway: is it alive, can it work, how does it fare. No key is asked for; no text is shown."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import generate_latest

from infra.fleet import AWAY, look
from infra.ledger.engine import ledger_now
from producer.exporter import fleet_page
from producer.gateway.middleware import CONTENT_TYPE
from producer.gateway.problems import ProblemError
from producer.gateway.state import Here
from schemas.fleet import FleetSnapshot, ready

_ANSWER_WITHIN_S: Final = 3.0
_NO_ANSWER: Final = FleetSnapshot(away={"ledger": "no answer in time", "broker": "no answer in time"})

T = TypeVar("T")
router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(gateway: Here) -> dict[str, Any]:
    """Ledger and broker answer, so that items can be accepted; alongside it, the workers that would judge them."""
    # Not a whole look at the fleet, which may take too long on a busy ledger: a gateway that can accept items must not
    # become unready for that.
    ledger, announced = await asyncio.gather(
        _answers(asyncio.to_thread(ledger_now, gateway.services.engine)),
        _answers(asyncio.to_thread(gateway.announced)),
    )
    checks = {"ledger": "away" if ledger is None else "ok", "broker": "away" if announced is None else "ok"}
    if ledger is None or announced is None:
        away = ", ".join(name for name, state in checks.items() if state == "away")
        raise ProblemError(503, "not-ready", f"away: {away}", headers={"Retry-After": "2"}, **checks)
    workers = Counter(str(worker.guard) for worker in ready(announced, "worker"))
    return {
        "status": "ok",
        **checks,
        "guard": gateway.default_guard,
        "guard_served": bool(workers[gateway.default_guard]),
        "workers": dict(workers),
        "collectors": len(ready(announced, "collector")),
    }


@router.get("/metrics")
async def metrics(gateway: Here) -> Response:
    """Prometheus metrics: this gateway's own, and the whole fleet's, without those of a server that is away."""
    gateway.metrics.waiting.set(gateway.intake.verdicts.count)
    guards = [gateway.default_guard]
    fleet = await _answers(asyncio.to_thread(look, gateway.services, at_once=True, guards=guards)) or _NO_ANSWER
    return Response(gateway.metrics.render() + generate_latest(fleet_page(fleet)), media_type=CONTENT_TYPE)


async def _answers(question: Awaitable[T]) -> T | None:
    """The answer to a question to a server, or None where it is away."""
    try:
        return await asyncio.wait_for(question, _ANSWER_WITHIN_S)
    except (*AWAY, TimeoutError):
        return None
