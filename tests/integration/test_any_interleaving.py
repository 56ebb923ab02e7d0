"""Deliver, duplicate, reorder, lose, crash between any two steps: every item still ends as one verdict.

The worker's and the collector's own code runs in this process on a real Valkey and a real Postgres; hypothesis plays
Celery, the scheduler and the power switch. Several threads of two collectors settle at once, with the locks of a real
database, while some of their commits fail and some come through without an answer. The guard's answer is drawn from the
text, so that a verdict on another text shows; a chunk is given up after few losses, so that a false one shows.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from infra.broker.app import FINALIZING, VERDICTS, connect_redis, queue_of
from infra.ledger import intake
from infra.ledger.audit import audit
from infra.ledger.engine import autocommit, open_ledger
from infra.ledger.runs import run_status
from infra.servers.services import Services
from schemas.guards import Mode
from schemas.messages import ChunkItem, Lane
from schemas.runs import RunState
from tests.support.make import FINGERPRINT, items, spec
from worker.collector import finalizer as ending
from worker.collector import tasks as collecting
from worker.collector.finalizer import Finalizer
from worker.collector.reconcile import Reconciler
from worker.collector.tasks import Collector
from worker.consumer.deliveries import Deliveries
from worker.consumer.tasks import Judge
from worker.device.engines.fake import FakeEngine
from worker.device.protocol import DeviceRequest, DeviceResult, Scored
from worker.guards.fake import FakeGuard

QUEUE = queue_of("fake", Lane.BULK)
ENGINE = FakeEngine(error=0.05)
"""Its P(unsafe) is as good as a digest of the text."""
MAX_ATTEMPTS = 2
SETTLED_WITHIN_S = 60.0
"""Long past any lock's time limit: a thread that takes longer waits for ever."""
TENANT = "acme"


class Crash(BaseException):
    """The process is gone: nothing after this point happens."""


class Fuse:
    """Blows at the n-th step it is asked about; never where n is None."""

    def __init__(self, at: int | None) -> None:
        self.left = at
        self.blown = False

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            self.blown = self.blown or self.left < 0
        if self.blown:
            raise Crash


class Mortal:
    """Something of a process that dies when the fuse blows, before a call or after it."""

    def __init__(self, inner: object, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        if not callable(getattr(self._inner, name)):
            return Mortal(getattr(self._inner, name), self._fuse)

        def call(*args: object, **options: object) -> object:
            self._fuse.step()
            result = getattr(self._inner, name)(*args, **options)
            self._fuse.step()
            return result

        return call


class StubDevice:
    """Runs the fake engine here."""

    def run(self, request: DeviceRequest, *, on_progress: Callable[[], None]) -> DeviceResult:  # noqa: ARG002
        return DeviceResult(answers=[Scored(scores) for scores in ENGINE.score(request.prompts, request.labels)])


class Commits:
    """The commits of an engine: some fail, and some come through though nobody hears of it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._real = engine.dialect.do_commit
        self._lock = threading.Lock()
        self.coming: list[str] = []
        """"fails" or "unheard", for the next commits in turn; any other word and no word: it comes through."""
        engine.dialect.do_commit = self._commit  # type: ignore[method-assign]

    def _commit(self, connection: Any) -> None:
        with self._lock:
            fate = self.coming.pop(0) if self.coming else ""
        if fate != "fails":
            self._real(connection)
        if fate in ("fails", "unheard"):
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")


fuses = st.none() | st.integers(0, 9)
fates = st.lists(st.sampled_from(["fails", "unheard", "comes through"]), max_size=4)


class Fleet(RuleBasedStateMachine):
    """Two runs of one tenant, both of whose items have submissions: collectors meet in its feed."""

    services: ClassVar[Services]
    other_engine: ClassVar[sa.Engine]
    commits: ClassVar[Commits]

    @initialize(repeat=st.integers(1, 2))
    def open(self, repeat: int) -> None:
        self.redis = connect_redis(self.services.redis_url)
        self.redis.flushdb()
        self.commits.coming.clear()
        self.spec = spec(repeat=repeat)
        self.runs = [intake.create_run(self.services.engine, self.spec) for _ in range(2)]
        self.unacked: list[tuple[str, str]] = []
        self.accepted = dict.fromkeys(self.runs, 0)
        self.losses: Counter[str] = Counter()
        settings = self.services.settings.model_copy(update={"max_attempts": MAX_ATTEMPTS, "bulk_lease_s": 60.0})
        self.reconciler = Reconciler(
            self.services.engine, self.services.coordination, self.services.publisher, settings
        )

    def state(self, run: int) -> RunState:
        return run_status(self.services.engine, self.runs[run]).state

    def any_accepted(self) -> bool:
        return any(self.accepted.values())

    def may_lose(self, attempts: int = 1) -> None:
        """Something is about to happen that may cost each pending chunk an attempt or more."""
        pending = "SELECT run_id || '/' || chunk_no FROM chunks WHERE settled < size AND run_id = ANY(:runs)"
        with self.services.engine.connect() as connection:
            for chunk in connection.scalars(sa.text(pending), {"runs": self.runs}):
                self.losses[chunk] += attempts

    # The producer.

    @rule(run=st.integers(0, 1), size=st.integers(1, 4), published=st.integers(0, 4))
    def submit(self, run: int, size: int, published: int) -> None:
        """Accept two chunks; dies before it has published all of them."""
        run_id = self.runs[run]
        first = self.accepted[run_id]
        if self.state(run) is not RunState.OPEN or first >= 20:
            return
        batch = items(first + 2 * size, prefix=f"{run_id}-item")[first:]
        batch = [item.model_copy(update={"response": f"{item.response} of {run_id}"}) for item in batch]
        self.accepted[run_id] += 2 * size
        submissions = {item.id: intake.Submission(TENANT, custom_id=item.id) for item in batch}
        groups = [batch[:size], batch[size:]]
        chunks = intake.accept_submitted(self.services.engine, run_id, self.spec, groups, submissions)
        for chunk in chunks[:published]:
            self.services.publisher.judge(chunk)
        self.losses.update(chunk.chunk_id for chunk in chunks[published:])

    @precondition(any_accepted)
    @rule(run=st.integers(0, 1), dies=st.booleans())
    def seal(self, run: int, dies: bool) -> None:
        if intake.seal(self.services.engine, self.runs[run]) and not dies:
            self.services.publisher.finalize(self.runs[run])

    # The broker.

    def _pop(self, queue: str) -> str | None:
        raw = self.redis.rpop(f"libra:{queue}")
        if raw is None:
            return None
        self.unacked.append((queue, raw))
        return json.loads(base64.b64decode(json.loads(raw)["body"]))[0][0]

    def _ack(self) -> None:
        self.unacked.pop()

    @precondition(lambda self: self.unacked)
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        """A visibility timeout, or a supervisor that gives back: whether or not the holder is still at work."""
        queue, raw = self.unacked.pop(data.draw(st.integers(0, len(self.unacked) - 1)))
        self.redis.rpush(f"libra:{queue}", raw)

    @rule(queue=st.sampled_from([QUEUE, VERDICTS, FINALIZING]))
    def duplicate(self, queue: str) -> None:
        self.may_lose(MAX_ATTEMPTS)  # the newest is now the next: the others look as if they had been dispatched
        if raw := self.redis.lindex(f"libra:{queue}", 0):
            self.redis.rpush(f"libra:{queue}", raw)

    @rule(queue=st.sampled_from([QUEUE, VERDICTS]))
    def reorder(self, queue: str) -> None:
        self.may_lose(MAX_ATTEMPTS)  # what waits behind a later one looks as if it had been dispatched
        self.redis.rpoplpush(f"libra:{queue}", f"libra:{queue}")

    @rule(queue=st.sampled_from([QUEUE, VERDICTS, FINALIZING]))
    def lose(self, queue: str) -> None:
        self.may_lose()
        self.redis.rpop(f"libra:{queue}")

    @rule()
    def flush(self) -> None:
        self.may_lose()
        self.redis.flushdb()

    # Worker and collector.

    @rule(fuse=fuses)
    def judge(self, fuse: int | None = None) -> None:
        body = self._pop(QUEUE)
        if body is not None:
            blows = Fuse(fuse)
            self._dying(blows, lambda: self._judge(blows)(body))

    def _judge(self, fuse: Fuse) -> Judge:
        coordination: Any = Mortal(self.services.coordination, fuse)
        deliveries: Any = Mortal(Deliveries(coordination, queue=QUEUE, worker_id="w"), fuse)
        return Judge(
            guard=FakeGuard(),
            device=Mortal(StubDevice(), fuse),  # type: ignore[arg-type]
            deliveries=deliveries,
            fingerprints=dict.fromkeys(Mode, FINGERPRINT),
            worker_id="w",
        )

    @rule(fuse=fuses)
    def settle(self, fuse: int | None = None) -> None:
        body = self._pop(VERDICTS)
        if body is not None:
            blows = Fuse(fuse)
            self._dying(blows, lambda: self._collector(blows).settle(body))

    @rule(fuse=fuses)
    def finalize(self, fuse: int | None = None) -> None:
        body = self._pop(FINALIZING)
        if body is not None:
            blows = Fuse(fuse)
            self._dying(blows, lambda: self._finalizer(blows).finalize(body))

    def _collector(self, fuse: Fuse) -> Collector:
        coordination, publisher = Mortal(self.services.coordination, fuse), Mortal(self.services.publisher, fuse)
        return Collector(
            self.services.engine,
            coordination,  # type: ignore[arg-type]
            publisher,  # type: ignore[arg-type]
            stopping=lambda: False,
        )

    def _finalizer(self, fuse: Fuse) -> Finalizer:
        coordination: Any = Mortal(self.services.coordination, fuse)
        return Finalizer(self.services.engine, coordination, lease_s=60, stopping=lambda: False)

    def _dying(self, fuse: Fuse, action: Callable[[], None]) -> None:
        """Acknowledged only if it came through. The steps between two statements of the ledger can die, too."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collecting, "settlement", _MortalModule(collecting.settlement, fuse))
            patch.setattr(ending, "finalizing", _MortalModule(ending.finalizing, fuse))
            try:
                action()
            except Crash:
                self.may_lose()
                return
        self._ack()

    # Two collectors at work at once.

    @rule(fates=fates, most=st.integers(2, 6))
    def settle_at_once(self, fates: list[str], most: int) -> None:
        """Threads of two collectors settle what waits, while commits fail; what came through is acknowledged."""
        bodies = [body for body in (self._pop(VERDICTS) for _ in range(most)) if body is not None]
        collectors = itertools.cycle([self._unharmed(self.services.engine), self._unharmed(self.other_engine)])
        self.commits.coming[:] = fates
        with ThreadPoolExecutor(max(1, len(bodies))) as threads:
            done = [threads.submit(collector.settle, body) for collector, body in zip(collectors, bodies, strict=False)]
            for each in done:
                each.result(SETTLED_WITHIN_S)
        self.commits.coming.clear()
        for _ in bodies:
            self._ack()

    def _unharmed(self, engine: sa.Engine) -> Collector:
        return Collector(
            engine,
            self.services.coordination,
            self.services.publisher,
            stopping=lambda: False,
        )

    # Time and the reconciler.

    @rule()
    def time_passes(self) -> None:
        """Leases and notes run out."""
        self.redis.delete(f"libra:board:held:{QUEUE}")
        with self.services.engine.begin() as connection:
            connection.execute(sa.text("UPDATE chunks SET overtaken_at = overtaken_at - interval '1 hour'"))
            connection.execute(sa.text("UPDATE runs SET lease_until = lease_until - interval '1 hour'"))

    @rule()
    def wait_long(self) -> None:
        """Nobody consumes for many leases: what waits on a queue is not lost, however long it waits."""
        for _ in range(2 * MAX_ATTEMPTS + 2):
            self.time_passes()
            self.reconcile()

    @rule(fuse=fuses)
    def reconcile(self, fuse: int | None = None) -> None:
        blows = Fuse(fuse)
        self.reconciler._publisher = Mortal(self.services.publisher, blows)  # type: ignore[assignment]
        self.reconciler._coordination = Mortal(self.services.coordination, blows)  # type: ignore[assignment]
        with autocommit(self.services.engine) as connection:
            try:
                self.reconciler.look(connection)
            except Crash:
                return

    # What must hold.

    @invariant()
    def books_balance(self) -> None:
        for run_id in getattr(self, "runs", ()):
            counts = run_status(self.services.engine, run_id).counts
            with self.services.engine.connect() as connection:
                rows = connection.scalar(sa.text("SELECT count(*) FROM verdicts WHERE run_id = :run"), {"run": run_id})
            assert counts.accepted == self.accepted[run_id]
            assert counts.accepted * self.spec.repeat == counts.settled + counts.pending
            assert counts.settled == rows

    def teardown(self) -> None:
        """Without further faults the runs come to their end, each verdict is its text's, and the books are in order."""
        if not hasattr(self, "runs") or not self.any_accepted():
            return
        for run_id in self.runs:
            intake.seal(self.services.engine, run_id)
        for _ in range(8):
            self.time_passes()
            self.reconcile()
            for step, queue in ((self.judge, QUEUE), (self.settle, VERDICTS), (self.finalize, FINALIZING)):
                while self.redis.llen(f"libra:{queue}"):
                    step()
        for run_id in self.runs:
            status, books = run_status(self.services.engine, run_id), audit(self.services.engine, run_id)
            assert status.state is RunState.COMPLETE
            assert status.counts.scored + status.counts.dead == self.accepted[run_id] * self.spec.repeat
            assert [check for check in books.checks if check.breaches] == []
        self._assert_verdicts_are_true()

    def _assert_verdicts_are_true(self) -> None:
        statement = sa.text(
            "SELECT c.run_id || '/' || c.chunk_no AS chunk, v.outcome, v.reason, v.p_unsafe, i.question, i.response "
            "FROM verdicts v JOIN items i USING (run_id, seq) JOIN chunks c ON c.run_id = v.run_id "
            "AND c.iteration = v.iteration AND v.seq BETWEEN c.first_seq AND c.first_seq + c.size - 1 "
            "WHERE v.run_id = ANY(:runs)"
        )
        with self.services.engine.connect() as connection:
            rows = connection.execute(statement, {"runs": self.runs}).all()
        for row in rows:
            if row.outcome == "dead":
                lost = self.losses[row.chunk]
                assert lost >= MAX_ATTEMPTS, f"{row.chunk} died ({row.reason}) after {lost} things that may lose one"
            else:
                assert math.isclose(row.p_unsafe, _p_unsafe(row.question, row.response), abs_tol=1e-9), row


def _p_unsafe(question: str, response: str) -> float:
    guard = FakeGuard()
    item = ChunkItem(seq=0, question=question, response=response)
    ((prompt,),) = guard.render([item], Mode.SCORE)
    p_unsafe = guard.read_scores(0, ENGINE.score([prompt], guard.label_ids)).p_unsafe
    assert p_unsafe is not None
    return p_unsafe


class _MortalModule:
    """A module of the ledger as a dying process sees it; its names for errors are the module's own."""

    def __init__(self, module: Any, fuse: Fuse) -> None:
        self._module = module
        self._mortal = Mortal(module, fuse)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return found if isinstance(found, type) else getattr(self._mortal, name)


@pytest.fixture
def two_ledgers(services: Services) -> Iterator[None]:
    """The machine's two collectors have an engine each, and every commit passes through our hands."""
    Fleet.services, Fleet.other_engine = services, open_ledger(services.database_url)
    Fleet.commits = Commits(services.engine)
    Fleet.other_engine.dialect.do_commit = services.engine.dialect.do_commit  # type: ignore[method-assign]
    yield
    Fleet.other_engine.dispose()


@pytest.mark.usefixtures("two_ledgers")
def test_any_interleaving_ends_with_one_verdict_for_each_item() -> None:
    run_state_machine_as_test(
        Fleet,
        settings=hypothesis_settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
