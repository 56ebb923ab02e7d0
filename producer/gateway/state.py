"""What one gateway process holds for all of its requests. Routes reach it by `gateway_of(request)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from fastapi import Request

from infra.board import Board, open_board
from infra.services import Services
from infra.settings import Settings
from producer.gateway.access import Keys
from producer.gateway.metrics import GatewayMetrics
from producer.gateway.pool import Pool

KnowsPolicy = Callable[[str], bool]


def no_policies(_: str) -> bool:
    """Where no policies are configured, none is known."""
    return False


@dataclass
class Gateway:
    """The servers, the threads to use them in, and who may ask."""

    services: Services
    default_guard: str
    knows_policy: KnowsPolicy = no_policies
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)

    @property
    def settings(self) -> Settings:
        """The process's settings."""
        return self.services.settings

    @cached_property
    def pool(self) -> Pool:
        """Threads for blocking work."""
        return Pool(self.settings.gateway_threads)

    @cached_property
    def keys(self) -> Keys:
        """API keys."""
        return Keys(self.services.engine, self.pool, cache_s=self.settings.gateway_key_cache_s)

    @cached_property
    def board(self) -> Board:
        """The notice board for questions that must be answered at once: it does not wait for a broker that is away."""
        return open_board(self.services.redis_url, self.settings.model_copy(update={"wait_for_servers_s": 0}))


def gateway_of(request: Request) -> Gateway:
    """The gateway that serves this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway
