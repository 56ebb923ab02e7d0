"""Live traffic: items are accepted into the day's run in group commits, enqueued, and their verdicts awaited.

`LiveIntake` is the one way in; the gateway calls it from asyncio, `LiveClient` from threads:

with services(load_settings()) as servers, LiveClient(servers, guard="libra-tiny") as client:
    verdict = client.judge("要审核的文本")

Keep one client for a service's life and call it from as many threads as you like: it keeps one subscription, and
what many threads ask at the same time is accepted together.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from infra import tracing
from infra.errors import LibraError, RunError
from infra.ledger import intake
from infra.ledger.intake import IdempotencyKey, Submission, accept_submitted
from infra.ledger.items import verdict_of
from infra.log import get_logger
from infra.servers.services import Services
from producer.intake.submit import cut_chunks
from producer.intake.verdict_waiter import ItemRef, PendingVerdicts, VerdictWaiter
from schemas.guards import Mode, TextForm
from schemas.items import Dialogue, Item, Kind
from schemas.messages import JudgeChunk, Lane
from schemas.runs import RunSpec
from schemas.verdicts import Verdict

_MOST_ITEMS: Final = 1_024
"""In one commit: a flood is committed in pieces, between which other tenants have their turn."""

log = get_logger(__name__)


def live_spec(
    tenant: str,
    guard: str,
    mode: Mode,
    *,
    cache: bool = True,
    analysis: bool = False,
    form: TextForm = TextForm.AS_IS,
) -> RunSpec:
    """The spec of a day's run of live traffic; traffic of equal specs shares a run, and its commits."""
    return RunSpec(
        guard=guard,
        mode=mode,
        lane=Lane.LIVE,
        source=f"live:{tenant}",
        tenant=tenant,
        cache=cache,
        verdict_only=mode is Mode.GENERATE and not analysis,
        form=form,
    )


class Accepted(NamedTuple):
    """The places of a request's items, in its order, and their verdicts to come where the request waits for them."""

    refs: list[ItemRef]
    verdicts: PendingVerdicts | None


@dataclass
class _Request:
    items: Sequence[Item]
    submissions: Mapping[str, Submission]
    waits: bool
    traceparent: str | None = field(default_factory=tracing.traceparent)
    """The caller's trace, as it is where this request is made."""
    accepted: Future[Accepted] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.accepted.set_running_or_notify_cancel()  # accepted it will be, whether or not its caller is still there


@dataclass
class _Line:
    """Requests that share a run and wait for the next commit; `busy` while one is under way or due."""

    waiting: list[_Request] = field(default_factory=list)
    busy: bool = False
    next_at: float = 0.0


class LiveIntake:
    """Accepts live items, and knows who waits for their verdicts. Thread-safe; its work is done in `executor`.

    Not infra.group_commit, whose callers each bring a thread that blocks: here a caller holds a future.

    `admit`: for requests of one spec, by their numbers of items, None or the error to raise to each.
    `committed`: called with the spec and the number of items of each commit.
    `gather_s`: commits of a spec begin no closer than that (a lone request is committed at once, what follows shares);
    `later` calls a function after so many seconds without keeping a thread, and is used for that alone.
    """

    def __init__(
        self,
        services: Services,
        executor: Executor,
        *,
        admit: Callable[[RunSpec, Sequence[int]], Sequence[LibraError | None]] = lambda _, sizes: [None] * len(sizes),
        committed: Callable[[RunSpec, int], None] = lambda _spec, _items: None,
        gather_s: float = 0.0,
        later: Callable[[float, Callable[[], object]], None] | None = None,
    ) -> None:
        self.verdicts: Final = VerdictWaiter(services)
        self._services = services
        self._executor = executor
        self._admit = admit
        self._committed = committed
        self._gather_s = gather_s
        self._later = later
        self._lock = threading.Lock()  # guards what follows
        self._lines: dict[RunSpec, _Line] = {}
        self._runs: dict[RunSpec, tuple[str, float]] = {}

    def accept(
        self,
        spec: RunSpec,
        items: Sequence[Item],
        submissions: Mapping[str, Submission] | None = None,
        *,
        waits: bool = False,
    ) -> Future[Accepted]:
        """Commit a request's items, together with what else of its spec arrives now; done after the commit.

        `submissions`, by item id, are given by all callers of a spec or by none. The future raises what `admit` gives,
        or RunError where the day's run was closed, and so was the next.
        """
        request = _Request(items, submissions or {}, waits)
        with self._lock:
            line = self._lines.setdefault(spec, _Line())
            line.waiting.append(request)
            if line.busy:
                return request.accepted
            line.busy = True
        self._start_commit(spec, line)
        return request.accepted

    def accept_alone(
        self,
        spec: RunSpec,
        items: Sequence[Item],
        submissions: Mapping[str, Submission] | None = None,
        *,
        once: IdempotencyKey | None = None,
    ) -> Future[Accepted]:
        """As `accept`, in a commit of its own: for items whose ids are the caller's, or a request that counts `once`.

        The future also raises DataError where an item id was used before in the day's run, and AlreadyMadeError,
        KeyReusedError or KeyInFlightError by the idempotency key; nothing was committed then.
        """
        request = _Request(items, submissions or {}, waits=False)
        self._executor.submit(self._commit, spec, [request], once)
        return request.accepted

    def run_ids(self) -> dict[str, list[str]]:
        """The runs that were fed since this process began, the latest of each spec, by tenant."""
        found: dict[str, list[str]] = {}
        with self._lock:
            for spec, (run_id, _) in self._runs.items():
                found.setdefault(str(spec.tenant), []).append(run_id)
        return found

    def _start_commit(self, spec: RunSpec, line: _Line) -> None:
        pause_s = line.next_at - time.monotonic()
        if pause_s > 0 and self._later is not None:
            self._later(pause_s, lambda: self._executor.submit(self._commit_waiting, spec, line))
        else:
            self._executor.submit(self._commit_waiting, spec, line)

    def _commit_waiting(self, spec: RunSpec, line: _Line) -> None:
        """Commit what waits; where more has come meanwhile, queue again behind the other specs' commits."""
        with self._lock:
            line.next_at = time.monotonic() + self._gather_s
            totals = itertools.accumulate(len(request.items) for request in line.waiting)
            count = max(1, sum(total <= _MOST_ITEMS for total in totals))
            taken, line.waiting = line.waiting[:count], line.waiting[count:]
        self._commit(spec, taken)
        with self._lock:
            more = line.busy = bool(line.waiting)
        if more:
            self._start_commit(spec, line)

    def _commit(self, spec: RunSpec, requests: Sequence[_Request], once: IdempotencyKey | None = None) -> None:
        """Admit, commit, expect the verdicts, answer, enqueue: in this order.

        Verdicts are expected before their items are enqueued, or a notice could outrun its waiter. A request is
        answered once its items are committed, not before; what follows is a help: should this process die or the
        broker be away, the reconciler finds the chunks in the ledger and enqueues them.
        """
        try:
            admitted = []
            refusals = self._admit(spec, [len(request.items) for request in requests])
            for request, refusal in zip(requests, refusals, strict=True):
                if refusal is None:
                    admitted.append(request)
                else:
                    request.accepted.set_exception(refusal)
            if admitted:
                self._commit_admitted(spec, admitted, once)
        except Exception as error:  # noqa: BLE001 - a task's edge: it is raised where the requests wait
            if not isinstance(error, LibraError):
                log.warning("intake_failed", error=type(error).__name__)
            for request in requests:
                if not request.accepted.done():
                    request.accepted.set_exception(error)

    def _commit_admitted(self, spec: RunSpec, requests: Sequence[_Request], once: IdempotencyKey | None) -> None:
        items = [item for request in requests for item in request.items]
        submissions = {name: said for request in requests for name, said in request.submissions.items()}
        settings = self._services.settings
        if any(request.waits for request in requests):
            self.verdicts.start()
        groups = cut_chunks(items, max_items=settings.chunk_items, max_bytes=settings.chunk_bytes)
        with (
            tracing.following(requests[0].traceparent),  # a commit that several share is in the trace of the first
            tracing.span("libra.submit", guard=spec.guard, lane=Lane.LIVE.value, items=len(items)),
        ):
            run_id, chunks = self._accept_today(spec, groups, submissions, once)
            tracing.annotate(run_id=run_id)
            seqs = (wire.seq for chunk in chunks for wire in chunk.items)
            ref_of = {item.id: ItemRef(run_id, next(seqs)) for group in groups for item in group}
            for request in requests:
                refs = [ref_of[item.id] for item in request.items]
                item_ids = [item.id for item in request.items]
                verdicts = self.verdicts.expect(refs, item_ids) if request.waits else None
                request.accepted.set_result(Accepted(refs, verdicts))
            self._committed(spec, len(items))
            for chunk in chunks:
                self._services.publisher.judge(chunk)

    def _accept_today(
        self,
        spec: RunSpec,
        groups: Sequence[Sequence[Item]],
        submissions: Mapping[str, Submission],
        once: IdempotencyKey | None,
    ) -> tuple[str, list[JudgeChunk]]:
        """Commit to the day's run, which is asked of the ledger once a day (by its clock).

        Where an operator has ended it, the day goes on in another, tried once.
        """
        engine = self._services.engine
        for last in (False, True):
            with self._lock:
                run_id, ends_at = self._runs.get(spec, ("", 0.0))
            if time.monotonic() >= ends_at:
                run_id, ends_in_s = intake.todays_run(engine, spec, tenant=str(spec.tenant))
                with self._lock:
                    self._runs[spec] = run_id, time.monotonic() + ends_in_s
            try:
                if submissions:
                    return run_id, accept_submitted(engine, run_id, spec, groups, submissions, once=once)
                return run_id, intake.accept(engine, run_id, spec, groups)
            except RunError:
                with self._lock:
                    self._runs.pop(spec, None)
                if last:
                    raise
        raise AssertionError("the second try returns or raises")


class NoVerdictError(RunError, TimeoutError):
    """No verdict within the time-out; the item stays accepted and will settle."""


class LiveClient:
    """Live traffic of one tenant through one guard. Thread-safe.

    `cache`: a device's earlier answer to the very same prompts may be used again. `analysis`: a model in mode
    generate writes on after its verdict. `form`: the form of the texts that the guard is asked about.
    """

    def __init__(
        self,
        services: Services,
        *,
        guard: str,
        mode: Mode = Mode.SCORE,
        tenant: str = "default",
        cache: bool = True,
        form: TextForm = TextForm.AS_IS,
        analysis: bool = False,
    ) -> None:
        self._services = services
        self._spec = live_spec(tenant, guard, mode, cache=cache, analysis=analysis, form=form)
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="live")
        self._intake = LiveIntake(services, self._executor)

    def close(self) -> None:
        """Enqueue what was accepted, then follow no more; call it when no caller waits for a verdict."""
        self._executor.shutdown()
        self._intake.verdicts.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, items: Sequence[Item]) -> list[ItemRef]:
        """Accept items into the ledger and put them on the live lane; a place for each, in the order given.

        Raises:
            DataError: an item id was used before in the day's run.
            RunError: an operator has ended the day's run, and the next.
        """
        return self._intake.accept_alone(self._spec, items).result().refs

    def judge(self, text: str | Dialogue, *, question: str = "", timeout_s: float = 30) -> Verdict:
        """The settled verdict on one text, on a response to a question, or on a dialogue that says who speaks.

        Raises:
            pydantic.ValidationError: the text is empty or too long.
            NoVerdictError: none within the time-out; the item stays accepted and will settle.
            ItemLostError: a failover of the ledger lost the item; judge it again.
            RunError: an operator has ended the day's run, and the next.
        """
        deadline = time.monotonic() + timeout_s
        if isinstance(text, str):
            text = Dialogue(question, text, kind=Kind.PAIR if question else Kind.TEXT)
        item = Item(id=uuid.uuid4().hex, **text._asdict())
        (ref,), pending = self._intake.accept(self._spec, [item], waits=True).result()
        assert pending is not None  # noqa: S101 - it waits
        try:
            (verdict,) = pending.result.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._intake.verdicts.forget(pending)
            raise NoVerdictError(
                f"no verdict within {timeout_s:g} s; item {item.id} in run {ref.run_id} will still settle"
            ) from None
        return verdict

    def verdict(self, ref: ItemRef) -> Verdict | None:
        """The verdict of a submitted item, or None while it is pending."""
        return verdict_of(self._services.engine, ref.run_id, [ref.seq]).get(ref.seq)
