"""Composition root of the gateway: servers in, an ASGI application out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from infra.services import Services
from producer.gateway import batches, items, moderations, ops, runs
from producer.gateway.batch_worker import BatchWorker
from producer.gateway.frame import BodyLimit, Frame
from producer.gateway.problems import answer_errors
from producer.gateway.state import Gateway, KnowsPolicy, no_policies
from producer.options import DEFAULT_GUARD

UPLOAD_PATH: Final = "/v1/files"


def build_app(
    services: Services, *, default_guard: str = DEFAULT_GUARD, knows_policy: KnowsPolicy = no_policies
) -> FastAPI:
    """The gateway on these servers. `knows_policy` says whether a policy of that name can be applied."""
    gateway = Gateway(services, default_guard, knows_policy)
    app = FastAPI(
        title="Libra Fleet",
        version=version("libra-fleet"),
        description="Content moderation on your own GPUs. Errors are problem documents (RFC 9457).",
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.gateway = gateway
    answer_errors(app)
    _surround(app, gateway)
    for routes in (ops, moderations, items, batches, runs):
        app.include_router(routes.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    listening = asyncio.create_task(gateway.awaited.run())
    worker = BatchWorker(gateway)
    worker.start()
    try:
        yield
    finally:
        worker.stop()
        await gateway.intake.close()
        listening.cancel()
        gateway.pool.close()


def _surround(app: FastAPI, gateway: Gateway) -> None:
    settings = gateway.settings
    # The last one added is the outermost.
    if settings.gateway_cors_origins:
        origins = [origin.strip() for origin in settings.gateway_cors_origins.split(",")]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(
        BodyLimit, limit_bytes=settings.gateway_body_bytes, larger={UPLOAD_PATH: settings.gateway_file_bytes}
    )
    app.add_middleware(Frame, metrics=gateway.metrics)
