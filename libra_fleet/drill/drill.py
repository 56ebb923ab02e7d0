"""The drill itself: start a fleet, feed it, inject fault after fault, and audit the ledger in the end."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import psycopg
import redis
from sqlalchemy.exc import SQLAlchemyError

from infra.errors import RunError
from infra.ledger.audit import audit
from infra.process import module_path, python_module
from infra.servers.services import Services
from infra.supervise import Restart, SupervisedProcess, Supervisor, log_tail, spawn
from libra_fleet.drill import checks
from libra_fleet.drill.faults import Fault, Lasts, Mix, Needs, Planned, everything, plan
from libra_fleet.drill.ground import GUARD, Ground, Strike
from libra_fleet.drill.report import (
    RECOVERY_GRACE_S,
    DrillReport,
    InjectedFault,
    LedgerProbe,
    broken_bounds,
    lines_of,
)
from libra_fleet.drill.traffic import OPEN, Callers, DataSets, LiveItems
from schemas.fleet import ProcessKind, ready

_POLL_S: Final = 0.05
_LOOK_EVERY_S: Final = 0.25
_START_S: Final = 120.0
_HIT_S: Final = 60.0
_STALL_S: Final = 120.0
_SERVER_REST_S: Final = 11.0
"""A server that dies several times within ten seconds of its start is given up by its keeper."""
_PRODUCER_RESTARTS: Final = 200
_RESTART: Final = Restart(first_pause_s=0.2, longest_pause_s=0.2)
_GRACE_S: Final = 20.0
_LOG_TAIL_LINES: Final = 12
_LOGS_SHOWN: Final = 8
_AWAY: Final = (SQLAlchemyError, psycopg.Error, redis.RedisError)

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class DrillOptions:
    """The size of a drill. It ends after `faults`, or the first fault beyond `duration_s`."""

    seed: int = 0
    faults: int | None = 20
    duration_s: float | None = None
    items: int = 2_000
    round_items: int = 1_000
    item_ms: float = 8.0
    lease_s: float = 3.0
    workers: int = 2
    collectors: int = 2
    mix: Mix = field(default_factory=lambda: everything(own_servers=True, own_disk=False))

    def environment(self, namespace: str) -> dict[str, str]:
        """Small chunks, few in hand, and short queues, so that what is in flight at a fault soon has its turn again.

        Every limit that the product derives its bound from is as short as the lease.

        A chunk that is lost twice is given up: one false loss shows as dead items.
        """
        return {
            "LIBRA_NAMESPACE": namespace,
            "LIBRA_BULK_LEASE_S": f"{self.lease_s:g}",
            "LIBRA_LIVE_LEASE_S": f"{self.lease_s:g}",
            "LIBRA_FINALIZE_LEASE_S": f"{self.lease_s:g}",
            "LIBRA_BATCH_DEADLINE_S": f"{self.lease_s:g}",
            "LIBRA_RECONCILE_EVERY_S": "0.5",
            "LIBRA_RECONCILER_LEASE_S": f"{max(self.lease_s / 2, 1):g}",
            "LIBRA_LEDGER_IDLE_S": f"{self.lease_s:g}",
            "LIBRA_LEDGER_PEER_S": f"{max(self.lease_s, 3):g}",
            "LIBRA_SILENCE_S": f"{self.lease_s:g}",
            "LIBRA_CHUNK_ITEMS": "16",
            "LIBRA_WINDOW_ITEMS": "64",
            "LIBRA_BULK_THREADS": "4",
            "LIBRA_HIGH_WATER_CHUNKS": "8",
            "LIBRA_MAX_ATTEMPTS": "2",
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
        self._live = LiveItems(services)
        self._calls = Callers(services, _free_port())
        self._data = DataSets(folder, options.round_items)
        self._ground = Ground(
            services,
            self._fleet,
            state_dir,
            random.Random(options.seed),  # noqa: S311 - no secret
            lease_s=options.lease_s,
            submit=self._live.submit,
        )
        self._ledger = LedgerProbe(services, GUARD)
        self._feeding = False
        self._producer: SupervisedProcess | None = None
        self._strike: Strike | None = None
        self._injected: list[InjectedFault] = []
        self._last_injected: dict[str, float] = {}
        self._stuck: set[str] = set()
        """Chunks that a fault has cost for good: what comes after it is not blamed for them."""

    def run(self) -> DrillReport:
        """Drill and report."""
        self._services.engine  # noqa: B018 - migrated before a process asks
        self._live.open()
        started = self._ledger.now()
        self._skew_s = started - time.time()
        with ExitStack() as undo:
            undo.callback(self._fleet.stop, _GRACE_S)
            undo.callback(self._end_strike)
            self._start_fleet()
            if self._first(lambda: self._all_ready() or None, timeout_s=_START_S) is None:
                raise RunError(f"the fleet was not ready within {_START_S:g} s:\n{self._log_tails()}")
            self._feeding = True
            with self._live.running(), self._calls.running():
                if self._first(lambda: self._ledger.totals().settled or None, timeout_s=_START_S) is None:
                    raise RunError(f"the fleet judged nothing within {_START_S:g} s:\n{self._log_tails()}")
                ends_at = time.monotonic() + (self._options.duration_s or float("inf"))
                for number, planned in enumerate(plan(self._options.seed, self._options.mix)):
                    if number == self._options.faults or time.monotonic() > ends_at:
                        break
                    self._inject(planned)
                self._feed_to_the_end()
            whole = self._finish()
        return self._report(started, whole=whole)

    # The fleet.

    def _start_fleet(self) -> None:
        """Machine by machine: a collector and a worker each, as far as their numbers go; then the gateway."""
        options = self._options
        work = ("--devices", "cpu", "--fake-item-ms", f"{options.item_ms:g}", "--fake-error", f"{checks.FAKE_ERROR:g}")
        for machine in range(max(options.workers, options.collectors)):
            if machine < options.collectors:
                self._add("collector", "fleet", "collector")
            if machine < options.workers:
                self._add("worker", "fleet", "worker", "--guard", GUARD, *work)
        self._add("gateway", "fleet", "gateway", "--port", str(self._calls.port), "--guard", GUARD, "--no-local")

    def _all_ready(self) -> bool:
        announced = self._services.coordination.presence.announced()
        options = self._options
        wanted: dict[ProcessKind, int] = {"collector": options.collectors, "worker": options.workers, "gateway": 1}
        return all(len(ready(announced, kind)) >= count for kind, count in wanted.items())

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

    def _feed(self) -> None:
        """Have a producer at work: one data set after the other, each submitted again until that is done."""
        producer = self._producer
        if producer is not None and producer.exits > _PRODUCER_RESTARTS:
            raise RunError(f"the producer does not get through:\n{self._log_tails()}")
        if (producer is not None and not producer.retired) or not (self._feeding or self._data.waiting):
            return
        if producer is not None:
            self._fleet.processes.remove(producer)
        name, path = self._data.next()
        self._producer = self._add("producer", "run", "submit", str(path), "--guard", GUARD, "--name", name)

    # One fault after the other.

    def _inject(self, planned: Planned) -> None:
        """Do a planned fault to the fleet at work, and wait until it has recovered."""
        fault = planned.fault
        rested_at = self._last_injected.get(fault.name, -_SERVER_REST_S) + _SERVER_REST_S
        self._run_for(max(planned.gap_s, rested_at - time.monotonic() if fault.needs is not Needs.NOTHING else 0.0))
        each = self._first(lambda: self._try_to_inject(fault), timeout_s=_HIT_S)
        if each is None:
            raise RunError(f"there was no {fault.name} to hit for {_HIT_S:g} s:\n{self._log_tails()}")
        self._last_injected[fault.name] = began = time.monotonic()
        if fault.others_go_on:
            self._first(lambda: self._went_on(each) or None, timeout_s=self._limit_s)
        if fault.lasts is not Lasts.NO_TIME:
            self._run_for(began + fault.lasts_s(self._options.lease_s) - time.monotonic())
        self._end_strike(fault)
        if fault.lasts is Lasts.SECONDS:
            self._retry(self._ground.answer)  # an outage is over when both servers answer
        each.over = self._now()
        each.chunks |= self._retry(self._ledger.in_flight)
        # Afterwards, so that none is missed: what a stopped consumer had taken and the reconciler put back meanwhile.
        ends = self._retry(self._ledger.ends)
        each.chunks |= {chunk for chunk, end in ends.items() if end.attempt > each.attempts.get(chunk, 1)}
        self._injected.append(each)
        self._first(lambda: self._recovered(each) or None, timeout_s=self._limit_s + 30)
        if each.recovery_s is None:
            self._stuck |= {chunk for chunk, end in self._retry(self._ledger.ends).items() if end.settled_at is None}
        took = "not recovered" if each.recovery_s is None else f"recovered after {each.recovery_s:.1f} s"
        self._say(f"{each.number}: {fault.name}, {each.hit}: {took}")

    @property
    def _limit_s(self) -> float:
        return self._options.lease_s + RECOVERY_GRACE_S

    def _try_to_inject(self, fault: Fault) -> InjectedFault | None:
        """Look at what the fault exposes, then do it; None where there is nothing to hit just now."""
        looked, ends = self._now(), self._ledger.ends()
        if fault.loses_queue:  # a killed or emptied broker loses what is queued, too
            exposed = {chunk for chunk, end in ends.items() if end.settled_at is None}
        else:
            exposed = self._ledger.in_flight()
        if not any(ends[chunk].size > 1 for chunk in exposed if chunk in ends):
            return None  # no bulk chunk is under way: the fault would show nothing
        self._strike = fault.inject(self._ground)
        if self._strike is None:
            return None
        exposed = exposed | self._strike.chunks
        at, attempts = self._now(), {chunk: end.attempt for chunk, end in ends.items()}
        return InjectedFault(len(self._injected) + 1, fault, self._strike.hit, looked, at, at, exposed, attempts)

    def _end_strike(self, fault: Fault | None = None) -> None:
        """End the present fault, as soon as the servers let us."""
        if self._strike is None:
            return
        if fault is not None and fault.loses_commits:
            for producer in self._ground.running("producer"):
                producer.kill()  # it knows commits that are about to be lost: an operator starts it anew
        strike, self._strike = self._strike, None
        self._retry(lambda: strike.end() or True)
        if fault is not None and fault.loses_commits:
            known = self._retry(self._ledger.sealed_names)
            self._data.submit_again([name for name in self._data.submitted if name not in known])
            self._calls.call_again()

    def _went_on(self, each: InjectedFault) -> bool:
        """Note when all others had recovered while the fault still lasts."""
        each.went_on = self._settled_since(each, each.at)
        return each.went_on is not None

    def _recovered(self, each: InjectedFault) -> bool:
        each.recovered = self._settled_since(each, each.over)
        return each.recovered is not None

    def _settled_since(self, each: InjectedFault, since: float) -> float | None:
        """The time at which items had settled again and all that was in flight had settled, or None."""
        first, ends = self._ledger.first_settled_after(since), self._ledger.ends()
        settled = [ends[chunk].settled_at for chunk in each.chunks - self._stuck if chunk in ends]
        if first is None or None in settled:
            return None
        return max([first, *(at for at in settled if at is not None)])

    # The end.

    def _feed_to_the_end(self) -> None:
        """Feed until there were as many items as were asked for."""
        while self._calls.waiting or self._retry(self._ledger.totals).accepted < self._options.items:
            self._run_for(_LOOK_EVERY_S)
        self._feeding = False

    def _finish(self) -> bool:
        """Let everything settle; False where it does not."""
        self._say("all faults done; waiting for what is left")
        settled, progress_at = -1, time.monotonic()
        while time.monotonic() - progress_at <= _STALL_S:
            totals = self._retry(self._ledger.totals)
            if totals.settled != settled:
                settled, progress_at = totals.settled, time.monotonic()
            fed = not self._data.waiting and self._producer is not None and self._producer.retired
            if fed and totals.accepted == totals.settled and not self._retry(lambda: self._ledger.unfinished(OPEN)):
                return True
            self._run_for(_LOOK_EVERY_S)
        return False

    def _report(self, started: float, *, whole: bool) -> DrillReport:
        totals, ends = self._ledger.totals(), self._ledger.ends()
        outages = [
            (each.at, each.over) for each in self._injected if not each.fault.others_go_on or each.fault.stops_feed
        ]
        wrong, died = checks.wrong_verdicts(self._services), checks.false_deaths(self._services)
        stalls = checks.stalls(self._services, outages, longer_than_s=self._limit_s)
        unanswered = checks.unanswered_calls(self._services, self._calls.acknowledged)
        breaches = [
            *([] if whole else [f"{totals.accepted - totals.settled:,} items did not settle, or a run did not end"]),
            *self._audit(),
            *broken_bounds(self._injected, ends, lease_s=self._options.lease_s),
            *checks.breach("items have the verdict of another text", wrong),
            *checks.breach("items died without a cause of their own", died),
            *checks.breach("things stood still for too long", stalls),
            *checks.breach("calls that the gateway acknowledged have not one verdict", unanswered),
        ]
        lines = lines_of(self._injected, ends, started)
        return DrillReport(
            seed=self._options.seed,
            lease_s=self._options.lease_s,
            cores=os.cpu_count() or 1,
            seconds=round(self._now() - started, 1),
            runs=len(self._ledger.runs()),
            items=totals.accepted,
            settled=totals.settled,
            faults=tuple(lines),
            worst_recovery_s=max((line.recovery_s or 0.0 for line in lines), default=0.0),
            in_flight_items=sum(line.in_flight_items for line in lines),
            tried_again_items=sum(end.size * (end.attempt - 1) for end in ends.values()),
            wasted_items=sum(end.wasted for end in ends.values()),
            poisoned_items=totals.dead - len(died),
            wrong_items=len(wrong),
            false_deaths=len(died),
            acknowledged_calls=len(self._calls.acknowledged),
            breaches=tuple(breaches),
        )

    def _audit(self) -> list[str]:
        """Breaches of each run's audit, and data sets of which rows are missing."""
        found = []
        for run in self._ledger.runs():
            result = audit(self._services.engine, run)
            found += [f"run {run}: {check.name} ({check.found})" for check in result.checks if check.breaches]
        accepted = self._ledger.accepted_by_name()
        short = [name for name in self._data.submitted if accepted.get(name) != self._data.rows]
        return found + checks.breach("data sets are not whole in the ledger", short)

    # Waiting.

    def _first(self, look: Callable[[], ResultT | None], *, timeout_s: float) -> ResultT | None:
        """Keep the fleet running and fed until a look finds something; what cannot be read just now is not found."""
        deadline = time.monotonic() + timeout_s
        look_at = 0.0
        while True:
            self._fleet.poll()
            self._feed()
            if time.monotonic() >= look_at:
                with contextlib.suppress(*_AWAY):
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

    def _now(self) -> float:
        """The ledger's clock without asking it."""
        return time.time() + self._skew_s


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
