"""`GET /v1/models`: the guards that can be asked now, in OpenAI's shape. OpenAI's clients look here before they ask."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from producer.gateway.problems import NoSuchThingError
from producer.gateway.state import Gateway, Here, Reader
from schemas.fleet import ready

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models")
async def list_models(_principal: Reader, gateway: Here) -> dict[str, Any]:
    """The default guard, then the guards that a worker serves now."""
    return {"object": "list", "data": [_view(name) for name in await _guards(gateway)]}


@router.get("/models/{name}")
async def get_model(name: str, _principal: Reader, gateway: Here) -> dict[str, Any]:
    """One of them."""
    if name not in await _guards(gateway):
        raise NoSuchThingError("model", name[:80])
    return _view(name)


async def _guards(gateway: Gateway) -> list[str]:
    announced = await asyncio.to_thread(gateway.announced)
    served = sorted({str(worker.guard) for worker in ready(announced, "worker")})
    return [gateway.default_guard, *(name for name in served if name != gateway.default_guard)]


def _view(name: str) -> dict[str, Any]:
    # OpenAI's clients demand a number for `created`; a guard's date is not known here.
    return {"id": name, "object": "model", "created": 0, "owned_by": "libra-fleet"}
