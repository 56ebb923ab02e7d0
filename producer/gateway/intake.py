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

from infra import tracing
from infra.errors import LibraError, RunError
from infra.ledger.submissions import IdempotencyKey, Submission, accept_submitted
from infra.log import get_logger
from infra.servers.services import Services
from producer.gateway.live_runs import LiveRuns, Stream
from producer.gateway.metrics import GatewayMetrics
from producer.gateway.pool import Pool
from producer.gateway.problems import ProblemError
from producer.gateway.verdicts_awaited import AwaitedVerdicts, ItemRef
from producer.intake.submit import cut_chunks
from schemas.items import Item
from schemas.messages import JudgeChunk, Lane
from schemas.verdicts import Verdict

_MOST_ITEMS: Final = 1_024
"""In one commit: a flood is committed in pieces, between which other tenants have their turn."""

log = get_logger(__name__)


class Accepted(NamedTuple):
    """Places of a request's items, in its order, and their verdicts to come where the request waits for them."""

    places: list[ItemRef]
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
        self,
        services: Services,
        pool: Pool,
        runs: LiveRuns,
        awaited: AwaitedVerdicts,
        metrics: GatewayMetrics,
        *,
        admit: Callable[[str, str, Sequence[int]], list[ProblemError | None]],
        gather_s: float,
    ) -> None:
        self._services = services
        self._pool = pool
        self._runs = runs
        self._awaited = awaited
        self._metrics = metrics
        self._admit = admit
        self._gather_s = gather_s
        self._gathered: dict[Stream, list[_Request]] = {}
        self._next_at: dict[Stream, float] = {}
        self._at_work: set[asyncio.Task[None]] = set()

    async def accept(
        self, stream: Stream, items: Sequence[Item], submissions: Mapping[str, Submission], *, waits: bool = False
    ) -> Accepted:
        """Commit a request's items, together with what else arrives now; returns after the commit.

        Raises:
            ProblemError: 429, its tenant has to come back later.
            RunError: the day's run was closed, and so was the next.
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
        self, stream: Stream, items: Sequence[Item], submissions: Mapping[str, Submission], once: IdempotencyKey
    ) -> list[ItemRef]:
        """Commit a request with an idempotency key, alone: the key and the items are committed together or not at all.

        Raises:
            ProblemError: 429, its tenant has to come back later.
            RunError: the day's run was closed, and so was the next.
            AlreadyMadeError, KeyReusedError, KeyInFlightError: nothing was committed.
        """
        loop = asyncio.get_running_loop()
        request = _Request(items, submissions, waits=False, accepted=loop.create_future())
        self._start(self._commit(stream, [request], once))
        return (await request.accepted).places

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

    async def _commit(self, stream: Stream, requests: Sequence[_Request], once: IdempotencyKey | None = None) -> None:
        try:
            await self._pool.run(self._let_in_and_commit, asyncio.get_running_loop(), stream, requests, once)
        except Exception as error:  # noqa: BLE001 - a task's edge: it is raised where the requests wait
            if not isinstance(error, LibraError):
                log.warning("intake_failed", error=type(error).__name__)
            for request in requests:
                _refuse(request, error)

    def _let_in_and_commit(
        self, loop: asyncio.AbstractEventLoop, stream: Stream, requests: Sequence[_Request], once: IdempotencyKey | None
    ) -> None:
        """In a thread, where Redis is asked once for all of the requests."""
        refusals = self._admit(stream.tenant, stream.guard, [len(request.items) for request in requests])
        admitted = []
        for request, refusal in zip(requests, refusals, strict=True):
            if refusal is None:
                admitted.append(request)
            else:
                loop.call_soon_threadsafe(_refuse, request, refusal)
        if admitted:
            items = sum(len(request.items) for request in admitted)
            with tracing.span("libra.submit", guard=stream.guard, lane=Lane.LIVE.value, items=items):
                self._commit_and_queue(loop, stream, admitted, once)

    def _commit_and_queue(
        self, loop: asyncio.AbstractEventLoop, stream: Stream, requests: Sequence[_Request], once: IdempotencyKey | None
    ) -> None:
        """Once the requests are answered, what follows is a help that the reconciler would give as well."""
        settings = self._services.settings
        items = [item for request in requests for item in request.items]
        submissions = {name: said for request in requests for name, said in request.submissions.items()}
        groups = cut_chunks(items, max_items=settings.chunk_items, max_bytes=settings.chunk_bytes)
        try:
            run_id, chunks = self._accept_today(stream, groups, submissions, once)
        except RunError:  # an operator has ended it: the day goes on in another
            run_id, chunks = self._accept_today(stream, groups, submissions, once)
        names = [item.id for group in groups for item in group]
        seqs = [wire.seq for chunk in chunks for wire in chunk.items]
        place_of = {name: ItemRef(run_id, seq) for name, seq in zip(names, seqs, strict=True)}
        self._awaited.foresee(place_of[item.id] for request in requests if request.waits for item in request.items)
        loop.call_soon_threadsafe(self._answer, requests, place_of)
        self._metrics.commit_items.observe(len(items))
        self._metrics.accepted.labels(stream.tenant, Lane.LIVE).inc(len(items))
        for chunk in chunks:
            self._services.publisher.judge(chunk)

    def _accept_today(
        self,
        stream: Stream,
        groups: Sequence[Sequence[Item]],
        submissions: Mapping[str, Submission],
        once: IdempotencyKey | None,
    ) -> tuple[str, list[JudgeChunk]]:
        """Commit to the day's run; one that takes nothing more is not taken for the day's again."""
        run_id = self._runs.of(stream)
        try:
            return run_id, accept_submitted(
                self._services.engine, run_id, stream.spec(), groups, submissions, once=once
            )
        except RunError:
            self._runs.forget(stream)
            raise

    def _answer(self, requests: Sequence[_Request], place_of: Mapping[str, ItemRef]) -> None:
        for request in requests:
            places = [place_of[item.id] for item in request.items]
            expected = [self._awaited.expect(place) for place in places] if request.waits else []
            if not request.accepted.done():
                request.accepted.set_result(Accepted(places, expected))
            elif expected:  # the caller has gone; its items are accepted all the same
                self._awaited.forget(places, expected)


def _refuse(request: _Request, error: Exception) -> None:
    if not request.accepted.done():
        request.accepted.set_exception(error)


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
