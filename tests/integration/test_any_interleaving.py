"""Deliver, duplicate, reorder, lose, crash between any two steps: every item still ends as one verdict.

The worker's and the collector's own code runs in this process on a real Valkey and a real Postgres; hypothesis plays
Celery, the scheduler and the power switch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, ClassVar

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
from infra.ledger import intake, recovery
from infra.ledger.audit import audit
from infra.ledger.runs import run_status
from infra.servers.services import Services
from schemas.guards import Mode
from schemas.messages import Lane
from schemas.runs import RunState
from tests.support.make import FINGERPRINT, items, spec
from worker.collector import tasks as collecting
from worker.collector.reconcile import Reconciler
from worker.collector.tasks import Collector
from worker.consumer.deliveries import Deliveries
from worker.consumer.tasks import Judge
from worker.device.protocol import DeviceRequest, DeviceResult, Scored
from worker.guards.fake import FakeGuard

QUEUE = queue_of("fake", Lane.BULK)


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
    """Finds everything safe."""

    def run(self, request: DeviceRequest) -> DeviceResult:
        return DeviceResult(answers=[Scored((-0.1, -3.0)) for _ in request.prompts])


fuses = st.none() | st.integers(0, 9)


class Fleet(RuleBasedStateMachine):
    services: ClassVar[Services]

    @initialize(repeat=st.integers(1, 2))
    def open(self, repeat: int) -> None:
        self.redis = connect_redis(self.services.redis_url)
        self.redis.flushdb()
        self.spec = spec(repeat=repeat)
        self.run = intake.create_run(self.services.engine, self.spec)
        self.unacked: list[tuple[str, str]] = []
        self.accepted = 0
        settings = self.services.settings.model_copy(update={"max_attempts": 1_000, "bulk_lease_s": 60.0})
        self.reconciler = Reconciler(
            self.services.engine, self.services.coordination, self.services.publisher, settings
        )

    def state(self) -> RunState:
        return run_status(self.services.engine, self.run).state

    # The producer.

    @precondition(lambda self: self.state() is RunState.OPEN and self.accepted < 30)
    @rule(size=st.integers(1, 4), published=st.integers(0, 4))
    def submit(self, size: int, published: int) -> None:
        """Accept two chunks; dies before it has published all of them."""
        batch = items(self.accepted + 2 * size)[self.accepted :]
        self.accepted += 2 * size
        chunks = intake.accept(self.services.engine, self.run, self.spec, [batch[:size], batch[size:]])
        for chunk in chunks[:published]:
            self.services.publisher.judge(chunk)

    @precondition(lambda self: self.accepted > 0)
    @rule(dies=st.booleans())
    def seal(self, dies: bool) -> None:
        if intake.seal(self.services.engine, self.run) and not dies:
            self.services.publisher.finalize(self.run)

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
        if raw := self.redis.lindex(f"libra:{queue}", 0):
            self.redis.rpush(f"libra:{queue}", raw)

    @rule(queue=st.sampled_from([QUEUE, VERDICTS]))
    def reorder(self, queue: str) -> None:
        self.redis.rpoplpush(f"libra:{queue}", f"libra:{queue}")

    @rule(queue=st.sampled_from([QUEUE, VERDICTS, FINALIZING]))
    def lose(self, queue: str) -> None:
        self.redis.rpop(f"libra:{queue}")

    @rule()
    def flush(self) -> None:
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
            self._dying(blows, lambda: self._collector(blows).finalize(body))

    def _collector(self, fuse: Fuse) -> Collector:
        coordination, publisher = Mortal(self.services.coordination, fuse), Mortal(self.services.publisher, fuse)
        return Collector(
            self.services.engine,
            coordination,  # type: ignore[arg-type]
            publisher,  # type: ignore[arg-type]
            finalize_lease_s=60,
            stopping=lambda: False,
        )

    def _dying(self, fuse: Fuse, action: Callable[[], None]) -> None:
        """Acknowledged only if it came through. The steps between two statements of the ledger can die, too."""
        real = collecting.settlement
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collecting, "settlement", _MortalModule(real, fuse))
            try:
                action()
            except Crash:
                return
        self._ack()

    # Time and the reconciler.

    @rule()
    def time_passes(self) -> None:
        """Leases and notes run out."""
        self.redis.delete(f"libra:board:held:{QUEUE}")
        with self.services.engine.begin() as connection:
            connection.execute(sa.text("UPDATE chunks SET overtaken_at = overtaken_at - interval '1 hour'"))
            connection.execute(sa.text("UPDATE runs SET lease_until = lease_until - interval '1 hour'"))

    @rule(fuse=fuses)
    def reconcile(self, fuse: int | None = None) -> None:
        blows = Fuse(fuse)
        self.reconciler._publisher = Mortal(self.services.publisher, blows)  # type: ignore[assignment]
        self.reconciler._coordination = Mortal(self.services.coordination, blows)  # type: ignore[assignment]
        with recovery.reconciler_lock(self.services.engine) as connection:
            assert connection is not None
            try:
                self.reconciler.look(connection)
            except Crash:
                return

    # What must hold.

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "run"):
            return
        counts = run_status(self.services.engine, self.run).counts
        with self.services.engine.connect() as connection:
            rows = connection.scalar(sa.text("SELECT count(*) FROM verdicts WHERE run_id = :run"), {"run": self.run})
        assert counts.accepted == self.accepted
        assert counts.accepted * self.spec.repeat == counts.settled + counts.pending
        assert counts.settled == rows

    def teardown(self) -> None:
        """Without further faults the run comes to its end, and its books are in order."""
        if not getattr(self, "accepted", 0):
            return
        intake.seal(self.services.engine, self.run)
        for _ in range(8):
            self.time_passes()
            self.reconcile()
            for step, queue in ((self.judge, QUEUE), (self.settle, VERDICTS), (self.finalize, FINALIZING)):
                while self.redis.llen(f"libra:{queue}"):
                    step()
        status = run_status(self.services.engine, self.run)
        books = audit(self.services.engine, self.run)
        assert (status.state, status.counts.scored) == (RunState.COMPLETE, self.accepted * self.spec.repeat)
        assert [check for check in books.checks if check.breaches] == []


class _MortalModule:
    """The settlement module as a dying process sees it; its names for errors are the module's own."""

    def __init__(self, module: Any, fuse: Fuse) -> None:
        self._module = module
        self._mortal = Mortal(module, fuse)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return found if isinstance(found, type) else getattr(self._mortal, name)


def test_any_interleaving_ends_with_one_verdict_for_each_item(services: Services) -> None:
    Fleet.services = services
    run_state_machine_as_test(
        Fleet,
        settings=hypothesis_settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
