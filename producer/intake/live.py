"""The Python client for live traffic: submit an item, or wait for its verdict.

with LiveClient.open(guard="libra-tiny") as client:
    verdict = client.judge("要审核的文本")

Keep one client for a service's life and call it from as many threads as you like: it keeps one subscription, and
what many threads ask at the same time is accepted together.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Self

from infra import tracing
from infra.errors import RunError
from infra.group_commit import GroupCommit
from infra.ledger import intake, settlement
from infra.servers.services import Services, services
from infra.settings import Settings, load_settings
from producer.intake.submit import cut_chunks
from producer.intake.verdict_waiter import SettledWatch
from schemas.guards import Mode
from schemas.items import Item
from schemas.messages import JudgeChunk, Lane
from schemas.runs import RunSpec
from schemas.verdicts import Verdict


class Ticket(NamedTuple):
    """An accepted live item: where its verdict will be."""

    run_id: str
    seq: int
    item_id: str


class _Awaited(NamedTuple):
    """An item on its way, who follows it, and its verdict to come."""

    ticket: Ticket
    watch: SettledWatch
    verdict: Future[Verdict]


class LiveClient:
    """Live traffic of one tenant through one guard. Thread-safe.

    `cache`: whether what a device answered before to the very same prompts is taken again. `analysis`: whether
    a model in mode generate writes on after its verdict.
    """

    def __init__(
        self,
        services: Services,
        *,
        guard: str,
        mode: Mode = Mode.SCORE,
        tenant: str = "default",
        cache: bool = True,
        analysis: bool = False,
    ) -> None:
        self._services = services
        self._tenant = tenant
        self._spec = RunSpec(
            guard=guard,
            mode=mode,
            lane=Lane.LIVE,
            source=f"live:{tenant}",
            tenant=tenant,
            cache=cache,
            verdict_only=mode is Mode.GENERATE and not analysis,
        )
        self._send_together = GroupCommit(self._send, at_most=services.settings.chunk_items)
        self._lock = threading.Lock()
        self._run_id: str | None = None
        self._run_ends_at = 0.0
        self._watch: SettledWatch | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        *,
        guard: str,
        mode: Mode = Mode.SCORE,
        tenant: str = "default",
        cache: bool = True,
        analysis: bool = False,
        settings: Settings | None = None,
    ) -> Iterator[LiveClient]:
        """A client on the configured servers (or the embedded ones)."""
        settings = settings or load_settings()
        tracing.start(settings.otlp_endpoint, "libra-client")
        with services(settings) as found:
            client = cls(found, guard=guard, mode=mode, tenant=tenant, cache=cache, analysis=analysis)
            try:
                yield client
            finally:
                client.close()

    def close(self) -> None:
        """Stop following what settles; call it once nobody waits for a verdict."""
        with self._lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, items: Sequence[Item]) -> list[Ticket]:
        """Accept items into the ledger and put them on the live lane; a ticket for each, in the order given.

        Raises:
            DataError: an item id was used before in the day's run.
            RunError: an operator has ended the day's run; the next call goes to another.
        """
        run_id = self._todays_run()
        with self._traced(run_id, items):
            tickets, chunks = self._accept(run_id, items)
            self._enqueue(chunks)
        return tickets

    def judge(self, response: str, *, question: str = "", timeout_s: float = 30) -> Verdict:
        """The settled verdict on one text (or on a response to a question).

        Raises:
            pydantic.ValidationError: the text is empty or too long.
            RunError: no verdict within the time-out; the item stays accepted and will settle. Or an operator has ended
                the day's run; the next call goes to another.
        """
        deadline = time.monotonic() + timeout_s
        item = Item(id=uuid.uuid4().hex, question=question, response=response)
        awaited = self._send_together(item)
        try:
            return awaited.verdict.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            awaited.watch.forget(awaited.ticket.seq)
        raise RunError(
            f"no verdict within {timeout_s:g} s; item {item.id} in run {awaited.ticket.run_id} will still settle"
        )

    def verdict(self, ticket: Ticket) -> Verdict | None:
        """The verdict of a submitted item, or None while it is pending."""
        return settlement.verdict_of(self._services.engine, ticket.run_id, [ticket.seq]).get(ticket.seq)

    def _send(self, items: list[Item]) -> list[_Awaited]:
        """Accept what several threads ask, expect its verdicts, then enqueue it."""
        run_id = self._todays_run()
        watch = self._watching(run_id)
        with self._traced(run_id, items):
            tickets, chunks = self._accept(run_id, items)
            verdicts = watch.expect([ticket.seq for ticket in tickets])
            self._enqueue(chunks)
        return [_Awaited(ticket, watch, verdict) for ticket, verdict in zip(tickets, verdicts, strict=True)]

    def _traced(self, run_id: str, items: Sequence[Item]) -> AbstractContextManager[None]:
        spec = self._spec
        return tracing.span("libra.submit", guard=spec.guard, lane=spec.lane.value, run_id=run_id, items=len(items))

    def _accept(self, run_id: str, items: Sequence[Item]) -> tuple[list[Ticket], list[JudgeChunk]]:
        settings = self._services.settings
        groups = cut_chunks(items, max_items=settings.chunk_items, max_bytes=settings.chunk_bytes)
        try:
            chunks = intake.accept(self._services.engine, run_id, self._spec, groups)
        except RunError:
            self._forget_run(run_id)
            raise
        accepted = [item.id for group in groups for item in group]
        seqs = [wire.seq for chunk in chunks for wire in chunk.items]
        seq_of = dict(zip(accepted, seqs, strict=True))
        return [Ticket(run_id, seq_of[item.id], item.id) for item in items], chunks

    def _enqueue(self, chunks: Sequence[JudgeChunk]) -> None:
        for chunk in chunks:
            self._services.publisher.judge(chunk)

    def _todays_run(self) -> str:
        """The day's run, asked of the ledger once a day and when it was ended."""
        with self._lock:
            if self._run_id is None or time.monotonic() >= self._run_ends_at:
                self._run_id, ends_in_s = intake.todays_run(self._services.engine, self._spec, tenant=self._tenant)
                self._run_ends_at = time.monotonic() + ends_in_s
            return self._run_id

    def _forget_run(self, run_id: str) -> None:
        """An operator has ended it: the next call asks the ledger for the day's run again."""
        with self._lock:
            if self._run_id == run_id:
                self._run_id = None

    def _watching(self, run_id: str) -> SettledWatch:
        """Who follows the run; yesterday's ends when its last verdict is there."""
        with self._lock:
            if self._watch is None or self._watch.run_id != run_id:
                if self._watch is not None:
                    self._watch.close()
                self._watch = SettledWatch(self._services, run_id)
            return self._watch
