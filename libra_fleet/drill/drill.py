"""The drill itself: start a fleet, feed it, inject fault after fault, and audit the ledger in the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import redis
from sqlalchemy.exc import DBAPIError

from infra.errors import RunError
from infra.ledger import intake
from infra.ledger.audit import audit
from infra.process import module_path, python_module
from infra.servers.services import Services
from infra.supervise import Restart, SupervisedProcess, Supervisor, log_tail, spawn
from libra_fleet.drill.faults import EVERYTHING, Fault, FaultInjector, Mix, Planned, plan
from libra_fleet.drill.report import RECOVERY_GRACE_S, DrillReport, InjectedFault, LedgerProbe, broken_bounds, lines_of
from schemas.items import Item
from schemas.messages import Lane
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
_RESTART: Final = Restart(first_pause_s=0.2, longest_pause_s=0.2)
_GRACE_S: Final = 20.0
_LOG_TAIL_LINES: Final = 12
_LOGS_SHOWN: Final = 8

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class DrillOptions:
    """The size of a drill. It ends after `faults`, or the first fault beyond `duration_s`."""

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
    """One drill on servers that hold nothing else. Use it from one thread, which must outlive it."""

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
        self._environment = {
            **services.environment(),
            "PYTHONPATH": module_path(),
            **options.environment(services.settings.namespace),
        }
        self._fleet = Supervisor(on_exit=self._on_exit)
        self._faults = FaultInjector(services, self._fleet, state_dir, random.Random(options.seed))  # noqa: S311 - no secret
        self._ledger = LedgerProbe(services, GUARD)
        self._live = RunSpec(guard=GUARD, source="drill", lane=Lane.LIVE)
        self._live_items = 0
        self._rounds = 0
        self._feeding = True
        self._producer: SupervisedProcess | None = None
        self._injected: list[InjectedFault] = []
        self._last_injected: dict[Fault, float] = {}

    def run(self) -> DrillReport:
        """Drill and report."""
        self._services.engine  # noqa: B018 - migrated before a process asks
        self._live_run = intake.create_run(self._services.engine, self._live, name="drill-live")
        started = self._ledger.now()
        self._skew_s = started - time.time()
        try:
            for _ in range(self._options.collectors):
                self._add("collector", "collector")
            cost = f"{self._options.item_ms:g}"
            for _ in range(self._options.workers):
                self._add("worker", "worker", "--guard", GUARD, "--devices", "cpu", "--fake-item-ms", cost)
            if self._first(lambda: self._ledger.totals().settled or None, timeout_s=_START_S) is None:
                raise RunError(f"the fleet judged nothing within {_START_S:g} s:\n{self._log_tails()}")
            ends_at = time.monotonic() + (self._options.duration_s or float("inf"))
            for number, planned in enumerate(plan(self._options.seed, self._options.mix)):
                if number == self._options.faults or time.monotonic() > ends_at:
                    break
                self._inject(planned)
            whole = self._finish()
        finally:
            self._faults.resume()
            self._fleet.stop(_GRACE_S)
        totals, ends = self._ledger.totals(), self._ledger.ends()
        options = self._options
        breaches = [] if whole else [f"{totals.accepted - totals.settled:,} items did not settle, or a run did not end"]
        runs = self._ledger.runs()
        for run in runs:
            result = audit(self._services.engine, run)
            breaches += [f"run {run}: {check.name} ({check.found})" for check in result.checks if check.breaches]
        breaches += broken_bounds(self._injected, ends, lease_s=options.lease_s)
        if totals.dead:
            breaches.append(f"{totals.dead:,} items died, though none of them was poisonous")
        lines = lines_of(self._injected, ends, started)
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

    def _add(self, kind: str, *command: str) -> SupervisedProcess:
        """Take on a process of the fleet, which dies with the drill; the youngest ends first."""
        number = len(self._fleet.processes)
        log = self._folder / f"{kind}-{number}.log"
        start = partial(spawn, python_module("libra_fleet.cli", *command), self._environment, log=log)
        process = SupervisedProcess(kind, start, _RESTART, stage=-number, log=log)
        self._fleet.processes.append(process)
        return process

    def _on_exit(self, process: SupervisedProcess, code: int) -> None:
        """A producer that has done its work is finished; everything else is restarted, as a service manager would."""
        if process is self._producer and code == 0:
            process.retire()

    def _log_tails(self) -> str:
        tails = []
        for process in self._fleet.processes[-_LOGS_SHOWN:]:
            if process.log is not None and process.log.is_file():
                tail = log_tail(process.log, _LOG_TAIL_LINES)
                tails.append("\n".join([f"{process.log}:", *(f"  {line}" for line in tail.splitlines())]))
        return "\n".join(tails)

    def _inject(self, planned: Planned) -> None:
        """Do a planned fault to the fleet at work, and wait until it has recovered."""
        fault = planned.fault
        rested_at = self._last_injected.get(fault, -_SERVER_REST_S) + _SERVER_REST_S
        self._run_for(max(planned.gap_s, rested_at - time.monotonic()))
        # Some items on the live lane, so that its consumer has something to lose.
        first = self._live_items
        self._live_items += _LIVE_ITEMS
        items = [Item(id=f"live-{number}", response=f"live {number}") for number in range(first, self._live_items)]
        for chunk in self._retry(lambda: intake.accept(self._services.engine, self._live_run, self._live, [items])):
            self._services.publisher.judge(chunk)
        each = self._first(lambda: self._try_to_inject(fault), timeout_s=_HIT_S)
        if each is None:
            raise RunError(f"there was no {fault} to hit for {_HIT_S:g} s:\n{self._log_tails()}")
        self._last_injected[fault] = time.monotonic()
        if planned.lasts_s:
            self._run_for(planned.lasts_s)
            self._faults.resume()
        each.over = self._now()
        each.chunks |= self._retry(self._ledger.in_flight)
        # Afterwards, so that none is missed: what a stopped consumer had taken and the reconciler put back meanwhile.
        ends = self._retry(self._ledger.ends)
        each.chunks |= {chunk for chunk, end in ends.items() if end.attempt > each.attempts.get(chunk, 1)}
        self._injected.append(each)
        self._first(lambda: self._recovered(each) or None, timeout_s=self._options.lease_s + RECOVERY_GRACE_S + 30)
        took = "not recovered" if each.recovery_s is None else f"recovered after {each.recovery_s:.1f} s"
        self._say(f"{each.number}: {fault}, {each.hit}: {took}")

    def _try_to_inject(self, fault: Fault) -> InjectedFault | None:
        """Look at what the fault exposes, then do it; None where there is nothing to hit just now."""
        looked, ends = self._now(), self._ledger.ends()
        if fault in (Fault.VALKEY, Fault.FLUSH):  # a killed or emptied broker loses what is queued, too
            exposed = {chunk for chunk, end in ends.items() if end.settled_at is None}
        else:
            exposed = self._ledger.in_flight()
        if (hit := self._faults.inject(fault)) is None:
            return None
        at, attempts = self._now(), {chunk: end.attempt for chunk, end in ends.items()}
        return InjectedFault(len(self._injected) + 1, fault, hit, looked, at, at, exposed, attempts)

    def _recovered(self, each: InjectedFault) -> bool:
        first, ends = self._ledger.first_settled_after(each.over), self._ledger.ends()
        settled = [ends[chunk].settled_at for chunk in each.chunks]
        if first is None or None in settled:
            return False
        each.recovered = max([first, *(at for at in settled if at is not None)])
        return True

    def _finish(self) -> bool:
        """Let everything settle; False where it does not."""
        self._say("all faults done; waiting for what is left")
        settled, progress_at = -1, time.monotonic()
        while time.monotonic() - progress_at <= _STALL_S:
            totals = self._retry(self._ledger.totals)
            if totals.settled != settled:
                settled, progress_at = totals.settled, time.monotonic()
            self._feeding = totals.accepted - self._live_items < self._options.items
            fed = not self._feeding and self._producer is not None and self._producer.retired
            if fed and totals.accepted == totals.settled and totals.ended_runs == self._rounds + 1:
                return True
            self._run_for(_LOOK_EVERY_S)
        return False

    def _first(self, look: Callable[[], ResultT | None], *, timeout_s: float) -> ResultT | None:
        """Keep the fleet running and fed until a look finds something; what cannot be read just now is not found."""
        deadline = time.monotonic() + timeout_s
        look_at = 0.0
        while True:
            self._fleet.poll()
            self._feed()
            if time.monotonic() >= look_at:
                with contextlib.suppress(DBAPIError, redis.RedisError):
                    if (found := look()) is not None:
                        return found
                look_at = time.monotonic() + _LOOK_EVERY_S
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)

    def _run_for(self, seconds: float) -> None:
        self._first(lambda: None, timeout_s=seconds)

    def _retry(self, action: Callable[[], ResultT]) -> ResultT:
        found = self._first(lambda: (action(),), timeout_s=_START_S)
        if found is None:
            raise RunError(f"the servers did not come back within {_START_S:g} s:\n{self._log_tails()}")
        return found[0]

    def _feed(self) -> None:
        """Have a producer at work: one data set after the other, each submitted again until that is done."""
        producer = self._producer
        if producer is not None and producer.exits > _PRODUCER_RESTARTS:
            raise RunError(f"the producer does not get through:\n{self._log_tails()}")
        if (producer is not None and not producer.retired) or not self._feeding:
            return
        if producer is not None:
            self._fleet.processes.remove(producer)
        name = f"drill-{self._rounds}"
        self._rounds += 1
        data = self._folder / f"{name}.jsonl"
        rows = (
            json.dumps({"id": f"{name}-{at}", "text": f"第 {at} 条文本 of {name}"}, ensure_ascii=False)
            for at in range(self._options.round_items)
        )
        data.write_text("\n".join(rows) + "\n", encoding="utf-8")
        command = ("bench", "submit", str(data), "--guard", GUARD, "--name", name)
        self._producer = self._add("producer", *command)

    def _now(self) -> float:
        """The ledger's clock without asking it."""
        return time.time() + self._skew_s
