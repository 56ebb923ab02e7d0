"""What one gateway process holds for all of its requests. Routes reach it by `gateway_of(request)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from fastapi import Request

from infra.coordination.store import CoordinationStore
from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.access import Keys
from producer.gateway.admission import Admission
from producer.gateway.intake import Intake
from producer.gateway.live_runs import LiveRuns
from producer.gateway.metrics import GatewayMetrics
from producer.gateway.pool import Pool
from producer.gateway.verdicts_awaited import AwaitedVerdicts
from producer.webhooks.addresses import Allowed
from schemas.fleet import Announcement, ready

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
    webhooks_allowed: Allowed = field(default_factory=Allowed)
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
    def awaited(self) -> AwaitedVerdicts:
        """Requests that wait for verdicts."""
        return AwaitedVerdicts(self.services.engine, self.services.coordination)

    @property
    def waiting(self) -> int:
        """How many requests wait for verdicts; none before the servers were reached for the first time."""
        return self.awaited.count if "awaited" in self.__dict__ else 0

    @cached_property
    def live_runs(self) -> LiveRuns:
        """The runs that are fed."""
        return LiveRuns(self.services.engine)

    @cached_property
    def intake(self) -> Intake:
        """The way into the ledger."""
        gather_s = self.settings.gateway_gather_ms / 1000
        return Intake(
            self.services,
            self.pool,
            self.live_runs,
            self.awaited,
            self.metrics,
            admit=self.admission.admit,
            gather_s=gather_s,
        )

    @cached_property
    def admission(self) -> Admission:
        """Who is let in."""
        return Admission(self.services, self.coordination, self.metrics, self.live_runs.ids)

    @property
    def coordination(self) -> CoordinationStore:
        """The coordination store, which does not wait for a broker that is away."""
        return self.services.coordination_at_once

    def announced(self) -> list[Announcement]:
        """The processes of the fleet. In a thread."""
        return self.coordination.presence.announced()

    def serves(self, guard: str) -> bool:
        """Whether a worker of this guard has announced itself. In a thread."""
        return bool(ready(self.announced(), "worker", guard))


async def gateway_of(request: Request) -> Gateway:
    """The gateway that serves this request; not a plain function, which would be called in a thread."""
    gateway: Gateway = request.app.state.gateway
    return gateway
