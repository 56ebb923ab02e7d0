"""The drill itself: start a fleet, feed it, strike it again and again, and read the books in the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import redis
from sqlalchemy.exc import DBAPIError

from infra.errors import RunError
from infra.ledger import intake
from infra.ledger.audit import audit
from infra.servers.services import Services
from libra_fleet.drill.crew import Crew, Member
from libra_fleet.drill.faults import FaultInjector
from libra_fleet.drill.ledger_probe import LedgerProbe
from libra_fleet.drill.plan import EVERYTHING, Fault, Mix, Planned, plan
from libra_fleet.drill.report import RECOVERY_GRACE_S, DrillReport, Struck, broken_bounds, lines_of
from schemas.items import Item
from schemas.messages import JudgeChunk, Lane
from schemas.runs import RunSpec

GUARD: Final = "fake"
_POLL_S: Final = 0.05
_LOOK_EVERY_S: Final = 0.25
_START_S: Final = 120.0
_HIT_S: Final = 60.0
_STALL_S: Final = 120.0
_LIVE_ITEMS: Final = 4
_SERVER_REST_S: Final = 11.0
"""A server that dies several times within ten seconds of its start is given up by its keeper."""
_PRODUCER_RESTARTS: Final = 100

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class DrillOptions:
    """What a drill is to be. It ends after `faults`, or the first fault beyond `duration_s`."""

    seed: int = 0
    faults: int | None = 20
    duration_s: float | None = None
    items: int = 2_000
    round_items: int = 1_000
    item_ms: float = 4.0
    lease_s: float = 3.0
    workers: int = 1
    collectors: int = 1
    mix: Mix = field(default_factory=lambda: dict(EVERYTHING))

    def environment(self, namespace: str) -> dict[str, str]:
        """Small chunks and short queues, so that what is in flight at a fault soon has its turn again."""
        return {
            "LIBRA_NAMESPACE": namespace,
            "LIBRA_BULK_LEASE_S": f"{self.lease_s:g}",
            "LIBRA_LIVE_LEASE_S": f"{self.lease_s:g}",
            "LIBRA_FINALIZE_LEASE_S": f"{max(self.lease_s, 5):g}",
            "LIBRA_RECONCILE_EVERY_S": "0.5",
            "LIBRA_CHUNK_ITEMS": "16",
            "LIBRA_WINDOW_ITEMS": "64",
            "LIBRA_HIGH_WATER_CHUNKS": "8",
            "LIBRA_DRAIN_S": "10",
        }


class Drill:
    """One drill on servers that hold nothing else. Use it from one thread, which must outlive it.

    `state_dir`: of the embedded servers, where the drill may kill them.
    """

    def __init__(
        self,
        services: Services,
        folder: Path,
        options: DrillOptions,
        *,
        state_dir: Path | None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._services = services
        self._folder = folder
        self._options = options
        self._say = say
        self._crew = Crew(services, folder, options.environment(services.settings.namespace))
        self._hand = FaultInjector(services, self._crew, state_dir, random.Random(options.seed))  # noqa: S311 - no secret
        self._books = LedgerProbe(services, GUARD)
        self._live = RunSpec(guard=GUARD, source="drill", lane=Lane.LIVE)
        self._live_items = 0
        self._rounds = 0
        self._feeding = True
        self._producer: Member | None = None
        self._struck: list[Struck] = []
        self._last_server_strike: dict[Fault, float] = {}

    def run(self) -> DrillReport:
        """Drill and report.

        Raises:
            RunError: the fleet did not come up at all.
        """
        self._services.engine  # noqa: B018 - migrated before a process asks
        self._live_run = intake.create_run(self._services.engine, self._live, name="drill-live")
        started = self._books.now()
        self._skew_s = started - time.time()
        try:
            self._start()
            for planned in self._schedule():
                self._strike(planned)
            whole = self._finish()
        finally:
            self._hand.resume()
            self._crew.stop()
        return self._report(started, whole=whole)

    def _start(self) -> None:
        cost = f"{self._options.item_ms:g}"
        for _ in range(self._options.collectors):
            self._crew.add("collector", "collector")
        for _ in range(self._options.workers):
            self._crew.add("worker", "worker", "--guard", GUARD, "--devices", "cpu", "--fake-item-ms", cost)
        if not self._until(lambda: self._books.totals().settled > 0, timeout_s=_START_S):
            raise RunError(f"the fleet judged nothing within {_START_S:g} s:\n{self._crew.last_words()}")

    def _schedule(self) -> Iterator[Planned]:
        ends_at = time.monotonic() + (self._options.duration_s or float("inf"))
        for number, planned in enumerate(plan(self._options.seed, self._options.mix)):
            if number == self._options.faults or time.monotonic() > ends_at:
                return
            yield planned

    def _strike(self, planned: Planned) -> None:
        fault = planned.fault
        ready_at = max(time.monotonic() + planned.gap_s, self._last_server_strike.get(fault, 0.0) + _SERVER_REST_S)
        self._until(lambda: time.monotonic() >= ready_at, timeout_s=_HIT_S)
        self._send_live()
        hit: list[str] = []
        looked, before, attempts = 0.0, set[str](), dict[str, int]()

        def struck() -> bool:
            nonlocal looked, before, attempts
            looked, attempts = self._now(), self._attempts()
            before = self._caught(fault)
            hit.extend(filter(None, [self._hand.inject(fault)]))
            return bool(hit)

        if not self._until(struck, timeout_s=_HIT_S):
            raise RunError(f"there was no {fault} to hit for {_HIT_S:g} s:\n{self._crew.last_words()}")
        at = self._now()
        self._last_server_strike[fault] = time.monotonic()
        if planned.lasts_s:
            pause_ends = time.monotonic() + planned.lasts_s
            self._until(lambda: time.monotonic() >= pause_ends, timeout_s=_HIT_S)
            self._hand.resume()
        over = self._now()
        chunks = before | self._patiently(self._books.in_flight) | self._tried_again_since(attempts)
        each = Struck(len(self._struck) + 1, fault, hit[0], looked, at, over, chunks)
        self._struck.append(each)
        self._until(lambda: self._recovered(each), timeout_s=self._options.lease_s + RECOVERY_GRACE_S + 30)
        took = "not recovered" if each.recovery_s is None else f"recovered after {each.recovery_s:.1f} s"
        self._say(f"{each.number}: {fault}, {each.hit}: {took}")

    def _attempts(self) -> dict[str, int]:
        return {chunk: end.attempt for chunk, end in self._books.ends().items()}

    def _tried_again_since(self, before: dict[str, int]) -> set[str]:
        """What a stopped consumer had taken while it could say nothing, and the reconciler put back meanwhile."""
        now = self._patiently(self._attempts)
        return {chunk for chunk, attempt in now.items() if attempt > before.get(chunk, 1)}

    def _caught(self, fault: Fault) -> set[str]:
        """What the fault is going to hit: a killed or emptied broker loses what is queued, too."""
        if fault in (Fault.VALKEY, Fault.FLUSH):
            return {chunk for chunk, end in self._books.ends().items() if end.settled_at is None}
        return self._books.in_flight()

    def _recovered(self, each: Struck) -> bool:
        first = self._books.first_settled_after(each.over)
        if first is None or self._books.unsettled_of(each.chunks):
            return False
        ends = self._books.ends()
        last = max((ends[chunk].settled_at or 0.0 for chunk in each.chunks), default=0.0)
        each.recovered = max(first, last)
        return True

    def _send_live(self) -> None:
        """Some items on the live lane, so that its consumer has something to lose."""
        first = self._live_items
        self._live_items += _LIVE_ITEMS
        items = [Item(id=f"live-{number}", response=f"live {number}") for number in range(first, self._live_items)]
        for chunk in self._patiently(lambda: self._accept(items)):
            self._services.publisher.judge(chunk)

    def _accept(self, items: list[Item]) -> list[JudgeChunk]:
        return intake.accept(self._services.engine, self._live_run, self._live, [items])

    def _finish(self) -> bool:
        """Let everything settle; False where it does not."""
        self._say("all faults done; waiting for what is left")
        self._feeding = False
        progress = (-1, time.monotonic())

        def whole() -> bool:
            nonlocal progress
            totals = self._books.totals()
            if totals.settled != progress[0]:
                progress = (totals.settled, time.monotonic())
            enough = totals.accepted - self._live_items >= self._options.items
            self._feeding = not enough
            fed = self._producer is not None and self._producer.done
            return enough and fed and totals.accepted == totals.settled and totals.ended_runs == self._rounds + 1

        def stalled() -> bool:
            return time.monotonic() - progress[1] > _STALL_S

        self._until(lambda: whole() or stalled(), timeout_s=float("inf"))
        return not stalled()

    def _until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Tend the fleet until the condition holds; what cannot be read just now does not hold."""
        deadline = time.monotonic() + timeout_s
        look_at = 0.0
        while True:
            self._crew.tend()
            self._feed()
            if time.monotonic() >= look_at:
                with contextlib.suppress(DBAPIError, redis.RedisError):
                    if condition():
                        return True
                look_at = time.monotonic() + _LOOK_EVERY_S
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)

    def _patiently(self, action: Callable[[], ResultT]) -> ResultT:
        found: list[ResultT] = []

        def tried() -> bool:
            found.append(action())
            return True

        if not self._until(tried, timeout_s=_START_S):
            raise RunError(f"the servers did not come back within {_START_S:g} s:\n{self._crew.last_words()}")
        return found[0]

    def _feed(self) -> None:
        """Have a producer at work: one data set after the other, each submitted again until that is done."""
        producer = self._producer
        if producer is not None and producer.restarts > _PRODUCER_RESTARTS:
            raise RunError(f"the producer does not get through:\n{self._crew.last_words()}")
        if (producer is not None and not producer.done) or not self._feeding:
            return
        if producer is not None:
            self._crew.members.remove(producer)
        name = f"drill-{self._rounds}"
        self._rounds += 1
        data = self._folder / f"{name}.jsonl"
        data.write_text("\n".join(_rows(name, self._options.round_items)) + "\n", encoding="utf-8")
        command = ("bench", "submit", str(data), "--guard", GUARD, "--name", name)
        self._producer = self._crew.add("producer", *command, until_done=True)

    def _now(self) -> float:
        """The ledger's clock without asking it."""
        return time.time() + self._skew_s

    def _report(self, started: float, *, whole: bool) -> DrillReport:
        totals, ends = self._books.totals(), self._books.ends()
        options = self._options
        breaches = [] if whole else [f"{totals.accepted - totals.settled:,} items did not settle, or a run did not end"]
        runs = self._books.runs()
        for run in runs:
            books = audit(self._services.engine, run)
            breaches += [f"run {run}: {check.name} ({check.found})" for check in books.checks if check.breaches]
        breaches += broken_bounds(self._struck, ends, lease_s=options.lease_s)
        breaches += self._dead()
        lines = lines_of(self._struck, ends, started)
        return DrillReport(
            seed=options.seed,
            lease_s=options.lease_s,
            cores=os.cpu_count() or 1,
            seconds=round(self._now() - started, 1),
            runs=len(runs),
            items=totals.accepted,
            settled=totals.settled,
            faults=tuple(lines),
            worst_recovery_s=max((line.recovery_s or 0.0 for line in lines), default=0.0),
            in_flight_items=sum(line.in_flight_items for line in lines),
            tried_again_items=sum(end.size * (end.attempt - 1) for end in ends.values()),
            wasted_items=sum(end.wasted for end in ends.values()),
            breaches=tuple(breaches),
        )

    def _dead(self) -> list[str]:
        dead = self._books.dead()
        return [f"{dead:,} items died, though none of them was poisonous"] if dead else []


def _rows(name: str, count: int) -> Iterable[str]:
    return (
        json.dumps({"id": f"{name}-{at}", "text": f"第 {at} 条文本 of {name}"}, ensure_ascii=False)
        for at in range(count)
    )
