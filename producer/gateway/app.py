"""Composition root of the gateway: servers in, an ASGI application out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware.cors import CORSMiddleware

from infra.errors import UsageError
from infra.ledger.intake import forget_old_keys
from infra.log import get_logger
from infra.servers.services import Services
from producer.gateway.api import batches, items, models, moderations, ops
from producer.gateway.api.batch_worker import BatchWorker
from producer.gateway.api.moderation_result import EVERY_CATEGORY
from producer.gateway.api.openai_categories import CATEGORIES
from producer.gateway.connectors import clouds, dify, litellm, ogr, perspective, webhook
from producer.gateway.console import routes as console
from producer.gateway.console.pages import ConsoleHeaders
from producer.gateway.console.visitor import Console
from producer.gateway.middleware import BodyLimit, RequestFrame
from producer.gateway.problems import IN_OPENAPI, answer_errors
from producer.gateway.state import Gateway
from schemas.guards import DEFAULT_GUARD

UPLOAD_PATH: Final = "/v1/files"
_FORGET_EVERY_S: Final = 3_600

log = get_logger(__name__)


def build_app(
    services: Services,
    *,
    default_guard: str = DEFAULT_GUARD,
    knows_policy: Callable[[str], bool] = lambda _name: False,
) -> FastAPI:
    """The gateway on these servers. UsageError where a setting of it means nothing."""
    settings = services.settings
    if settings.unnamed_category not in (EVERY_CATEGORY, *CATEGORIES):
        raise UsageError(
            f"LIBRA_UNNAMED_CATEGORY is {settings.unnamed_category!r}; it may be {EVERY_CATEGORY} or one of OpenAI's "
            f"categories: {', '.join(CATEGORIES)}"
        )
    gateway = Gateway(services, default_guard, knows_policy)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.open()
        forgetting = asyncio.create_task(_forget_old_keys(gateway))
        worker = BatchWorker(gateway)
        worker.start()
        try:
            yield
        finally:
            worker.stop()
            forgetting.cancel()
            await gateway.close()

    app = FastAPI(
        title="Libra Fleet",
        version=version("libra-fleet"),
        description="Content moderation on your own GPUs. Errors are problem documents (RFC 9457).",
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        # Its records of failures quote what was sent, which is user text; our own metrics are at /metrics.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.state.console = Console(gateway)
    answer_errors(app)
    # The middleware that is added last is the outermost.
    if settings.gateway_cors_origins:
        origins = [origin.strip() for origin in settings.gateway_cors_origins.split(",")]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    larger = {UPLOAD_PATH: settings.gateway_file_bytes}
    app.add_middleware(BodyLimit, limit_bytes=settings.gateway_body_bytes, larger=larger)
    app.add_middleware(ConsoleHeaders)
    app.add_middleware(RequestFrame, metrics=gateway.metrics)
    of_openai = (models.router, moderations.router, batches.router)
    foreign = (perspective.router, litellm.router, dify.router, clouds.router, ogr.router, webhook.router)
    for router in (ops.router, *of_openai, items.router, items.runs, *foreign, console.router):
        app.include_router(router, responses={"default": IN_OPENAPI})
    return app


async def _forget_old_keys(gateway: Gateway) -> None:
    """Forget idempotency keys, which are remembered as long as the setting says, or up to an hour longer."""
    keep_s = gateway.settings.idempotency_keep_s
    while True:
        try:
            await gateway.ask(forget_old_keys, older_than_s=keep_s)
        except SQLAlchemyError as error:
            log.warning("keys_not_forgotten", error=type(error).__name__)
        await asyncio.sleep(_FORGET_EVERY_S)
