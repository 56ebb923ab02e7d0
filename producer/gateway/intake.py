"""From requests to the ledger: what arrives within a few milliseconds for one run shares a commit and its chunks.

A request is answered once its items are committed, not before; then they are put on the queue. Should the gateway die
between the two, the reconciler finds the chunk in the ledger and does it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from infra.errors import RunError
from infra.ledger import intake
from infra.ledger.submissions import Once, Submission, accept_submitted
from infra.log import get_logger
from infra.services import Services
from producer.gateway.metrics import GatewayMetrics
from producer.gateway.pool import Pool
from producer.gateway.verdicts_awaited import AwaitedVerdicts, Place
from producer.submit import cut_chunks
from schemas.guards import Mode
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec
from schemas.verdicts import Verdict

_RUN_KNOWN_S: Final = 10.0
"""How long a day's run is taken for today's; items that follow midnight so closely lie in yesterday's."""
_MOST_ITEMS: Final = 1_024
"""In one commit: a flood is committed in pieces, between which other tenants have their turn."""


log = get_logger(__name__)


class Stream(NamedTuple):
    """What shares a live run: a tenant, a guard and how it is asked."""

    tenant: str
    guard: str
    mode: Mode

    def spec(self) -> RunSpec:
        """The run's spec."""
        return RunSpec(
            guard=self.guard, mode=self.mode, lane=Lane.LIVE, source=f"live:{self.tenant}", tenant=self.tenant
        )


class Accepted(NamedTuple):
    """Places of a request's items, in its order, and their verdicts to come where the request waits for them."""

    places: list[Place]
    verdicts: list[asyncio.Future[Verdict]]


@dataclass
class _Request:
    items: Sequence[Item]
    submissions: Mapping[str, Submission]
    waits: bool
    accepted: asyncio.Future[Accepted]


class Intake:
    """Accepts items of many requests together. Lives on the event loop; ledger and broker are used in threads."""

    def __init__(
        self, services: Services, pool: Pool, awaited: AwaitedVerdicts, metrics: GatewayMetrics, *, gather_s: float
    ) -> None:
        self._services = services
        self._pool = pool
        self._awaited = awaited
        self._metrics = metrics
        self._gather_s = gather_s
        self._gathered: dict[Stream, list[_Request]] = {}
        self._next_at: dict[Stream, float] = {}
        self._at_work: set[asyncio.Task[None]] = set()
        self._runs: dict[Stream, tuple[float, str]] = {}

    async def accept(
        self, stream: Stream, items: Sequence[Item], submissions: Mapping[str, Submission], *, waits: bool = False
    ) -> Accepted:
        """Commit a request's items, together with what else arrives now; returns after the commit.

        Raises:
            RunError: the day's run was closed.
        """
        request = _Request(items, submissions, waits=waits, accepted=asyncio.get_running_loop().create_future())
        gathered = self._gathered.get(stream)
        if gathered is None:
            self._gathered[stream] = [request]
            self._start(self._commit_gathered(stream))
        else:
            gathered.append(request)
        return await request.accepted

    async def accept_once(
        self, stream: Stream, items: Sequence[Item], submissions: Mapping[str, Submission], once: Once
    ) -> list[Place]:
        """Commit a request with an idempotency key, alone: the key and the items are committed together or not at all.

        Raises:
            RunError: the day's run was closed.
            AlreadyMadeError, KeyReusedError, KeyInFlightError: nothing was committed.
        """
        loop = asyncio.get_running_loop()
        request = _Request(items, submissions, waits=False, accepted=loop.create_future())
        self._start(self._commit(stream, [request], once))
        return (await request.accepted).places

    def run_ids(self, tenant: str) -> list[str]:
        """The live runs that this gateway feeds for a tenant."""
        return [run_id for stream, (_, run_id) in self._runs.items() if stream.tenant == tenant]

    async def close(self) -> None:
        """Wait for what is being committed."""
        await asyncio.gather(*self._at_work, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _commit_gathered(self, stream: Stream) -> None:
        """Commit what gathers, until nothing more does.

        Commits of a stream begin no closer than `gather_s`: a lone request is committed at once, what follows shares.
        """
        await asyncio.sleep(max(0.0, self._next_at.get(stream, 0.0) - time.monotonic()))
        while requests := self._gathered[stream]:
            self._next_at[stream] = time.monotonic() + self._gather_s
            taken = _take(requests, _MOST_ITEMS)
            del requests[: len(taken)]
            await self._commit(stream, taken)
            await asyncio.sleep(max(0.0, self._next_at[stream] - time.monotonic()))
        del self._gathered[stream]

    async def _commit(self, stream: Stream, requests: Sequence[_Request], once: Once | None = None) -> None:
        loop = asyncio.get_running_loop()

        def committed(place_of: Mapping[str, Place]) -> None:
            loop.call_soon_threadsafe(self._answer, requests, place_of)

        try:
            await self._pool.run(self._commit_and_queue, stream, requests, once, committed)
        except Exception as error:  # noqa: BLE001 - a task's edge: it is raised where the requests wait
            log.warning("not_accepted", error=type(error).__name__)
            for request in requests:
                if not request.accepted.done():
                    request.accepted.set_exception(error)

    def _commit_and_queue(
        self,
        stream: Stream,
        requests: Sequence[_Request],
        once: Once | None,
        committed: Callable[[Mapping[str, Place]], None],
    ) -> None:
        """In a thread. Once `committed` was called, what follows is a help that the reconciler would give as well."""
        settings = self._services.settings
        spec = stream.spec()
        run_id = self._run_of(stream, spec)
        items = [item for request in requests for item in request.items]
        submissions = {name: said for request in requests for name, said in request.submissions.items()}
        groups = cut_chunks(items, max_items=settings.chunk_items, max_bytes=settings.chunk_bytes)
        try:
            chunks = accept_submitted(self._services.engine, run_id, spec, groups, submissions, once=once)
        except RunError:
            self._runs.pop(stream, None)
            raise
        names = [item.id for group in groups for item in group]
        seqs = [wire.seq for chunk in chunks for wire in chunk.items]
        committed({name: Place(run_id, seq) for name, seq in zip(names, seqs, strict=True)})
        self._metrics.commit_items.observe(len(items))
        self._metrics.accepted.labels(stream.tenant, Lane.LIVE).inc(len(items))
        for chunk in chunks:
            self._services.publisher.judge(chunk)

    def _run_of(self, stream: Stream, spec: RunSpec) -> str:
        until, run_id = self._runs.get(stream, (0.0, ""))
        if time.monotonic() >= until:
            run_id = intake.live_run(self._services.engine, spec, tenant=stream.tenant)
            self._runs[stream] = (time.monotonic() + _RUN_KNOWN_S, run_id)
        return run_id

    def _answer(self, requests: Sequence[_Request], place_of: Mapping[str, Place]) -> None:
        for request in requests:
            places = [place_of[item.id] for item in request.items]
            expected = [self._awaited.expect(place) for place in places] if request.waits else []
            if not request.accepted.done():
                request.accepted.set_result(Accepted(places, expected))
            elif expected:  # the caller has gone; its items are accepted all the same
                self._awaited.forget(places, expected)


def _take(requests: Sequence[_Request], most_items: int) -> list[_Request]:
    """The first requests, as many as fit into a commit (at least one)."""
    taken: list[_Request] = []
    items = 0
    for request in requests:
        items += len(request.items)
        if taken and items > most_items:
            break
        taken.append(request)
    return taken
