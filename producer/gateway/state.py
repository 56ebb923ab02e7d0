"""The state that one gateway process shares among its requests. Routes take it as `Here`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final

from fastapi import Depends, Request

from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.access import Keys
from producer.gateway.admission import Admission
from producer.gateway.middleware import GatewayMetrics
from producer.gateway.problems import ProblemError
from producer.intake.live import LiveIntake
from producer.webhooks.addresses import Allowed
from schemas.fleet import Announcement
from schemas.messages import Lane
from schemas.runs import RunSpec


class Gateway:
    """The servers, the threads to use them in, admission, intake, and the API keys.

    `knows_policy` says whether a policy of that name can be applied. Blocking work is done by `asyncio.to_thread`, in
    `threads`: as many as there are connections to the ledger is right, more would wait for one. Nothing here reaches
    a server before `open` or its first use.
    """

    def __init__(self, services: Services, default_guard: str, knows_policy: Callable[[str], bool]) -> None:
        settings = services.settings
        self.services: Final = services
        self.settings: Final[Settings] = settings
        self.default_guard: Final = default_guard
        self.knows_policy: Final = knows_policy
        self.webhooks_allowed: Final = Allowed.parse(settings.webhook_allow)
        self.metrics: Final = GatewayMetrics()
        self.threads: Final = ThreadPoolExecutor(settings.gateway_threads, thread_name_prefix="gateway")
        self.keys: Final = Keys(services, cache_s=settings.gateway_key_cache_s)
        self.intake: Final = LiveIntake(
            services,
            self.threads,
            admit=self._admit,
            committed=self._count,
            gather_s=settings.gateway_gather_ms / 1_000,
            later=self._later,
        )
        self._admission: Admission | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Reach the servers and begin to follow verdicts and queues, so that a wrong setting shows at the start."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(self.threads)

        def reach_servers() -> None:
            _ = self.services.engine, self.services.publisher
            self._admission = Admission(self.services, self.metrics, self.intake.run_ids, self.default_guard)
            self._admission.start()
            self.intake.verdicts.start()

        await asyncio.to_thread(reach_servers)

    async def close(self) -> None:
        """Commit and enqueue what was let in, and follow no more."""
        await asyncio.get_running_loop().shutdown_default_executor()
        self.intake.verdicts.stop()
        if self._admission:
            self._admission.stop()

    def announced(self) -> list[Announcement]:
        """The processes of the fleet. In a thread; does not wait for a broker that is away."""
        return self.services.coordination_at_once.presence.announced()

    def _admit(self, spec: RunSpec, sizes: Sequence[int]) -> list[ProblemError | None]:
        assert self._admission is not None  # noqa: S101 - items are accepted after `open` alone
        return self._admission.admit(str(spec.tenant), spec.guard, sizes)

    def _count(self, spec: RunSpec, items: int) -> None:
        self.metrics.commit_items.observe(items)
        self.metrics.accepted.labels(str(spec.tenant), Lane.LIVE).inc(items)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        """Have the event loop call something: it keeps no thread waiting."""
        assert self._loop is not None  # noqa: S101 - as above
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, call)


async def gateway_of(request: Request) -> Gateway:
    """The gateway that serves this request; not a plain function, which would be called in a thread."""
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(gateway_of)]
