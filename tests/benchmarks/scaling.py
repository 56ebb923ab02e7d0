"""From 1 to 32 device processes on one broker: how much of what they could do together they do.

Each device is simulated by sleeping: 50 ms for a batch of at most 4 items, so that many fit on two cores. Workers are
added to one fleet, each device with its device process and its two consumers; at every size a bulk run is fed for as
long as it takes, and what settles is counted by the ledger's own times once the newcomers are warm. Efficiency is the
rate over what that many devices could do with nothing around them.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from infra.ledger import intake, settlement
from infra.process import wait_until
from producer.intake.submit import submit
from schemas.fleet import ready
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec
from tests.benchmarks.kit.curve import draw_curve
from tests.benchmarks.kit.figures import Figure
from tests.benchmarks.kit.rig import GUARD, Rig, rig, text_of
from tests.support.processes import stop

_SIZES: Final = (1, 2, 4, 8, 16, 32)
_BATCH_MS: Final = 50
_BATCH_ITEMS: Final = 4
_BARE_PER_S: Final = _BATCH_ITEMS * 1_000 / _BATCH_MS
_TEXT_BYTES: Final = 200
_SECONDS: Final = 12
_QUICK_SECONDS: Final = 10
_WARM_UP_S: Final = 4
_READY_S: Final = 180
_EFFICIENCY: Final = 0.9
_PICTURE: Final = Path(__file__).parents[2] / "docs" / "scaling.svg"


def run(*, quick: bool) -> Iterator[Figure]:
    """The rate at every size; the curve is drawn to docs/scaling.svg."""
    seconds = _QUICK_SECONDS if quick else _SECONDS
    rates: dict[int, float] = {}
    with rig() as found, ExitStack() as fleet:
        fleet.enter_context(_process(found, "collector"))
        for size, fewer in zip(_SIZES, (0, *_SIZES), strict=False):
            fleet.enter_context(_more_devices(found, size - fewer))
            rates[size] = _steady_rate(found, size, seconds)
            note = f"efficiency {rates[size] / (size * _BARE_PER_S):.3f}"
            yield Figure("scaling", f"{size} devices", rates[size], "items/s", note=note)
    most = _SIZES[-1]
    draw_curve(
        _PICTURE,
        {size: rate / _BARE_PER_S for size, rate in rates.items()},
        title=f"{_BARE_PER_S:.0f} items/s a device: what {most} of them do together",
        across="device processes on one broker",
        up="rate, in bare devices",
    )
    efficiency = rates[most] / (most * _BARE_PER_S)
    yield Figure("scaling", f"efficiency at {most} devices", efficiency, "", at_least=_EFFICIENCY)


@contextmanager
def _more_devices(found: Rig, count: int) -> Iterator[None]:
    """One more worker, with so many devices, ready."""
    before = _ready_devices(found)
    options = ("--fake-batch-ms", str(_BATCH_MS), "--max-batch-items", str(_BATCH_ITEMS))
    devices = ",".join(map(str, range(count)))  # the fake engine uses none of them
    with _process(found, "worker", "--guard", GUARD, "--devices", devices, *options):
        if not wait_until(lambda: _ready_devices(found) == before + count, timeout_s=_READY_S):
            raise TimeoutError(f"{_ready_devices(found) - before} of {count} devices after {_READY_S} s")
        yield


def _ready_devices(found: Rig) -> int:
    return len(ready(found.services.coordination.presence.announced(), "worker"))


@contextmanager
def _process(found: Rig, *arguments: str) -> Iterator[None]:
    log = found.folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "libra_fleet.cli", *arguments]
        process = subprocess.Popen(command, env=found.services.environment(), stdout=output, stderr=output)
        try:
            yield
        finally:
            stop(process, grace_s=20)


def _steady_rate(found: Rig, size: int, seconds: int) -> float:
    """Items a second that settle while every device works, and work waits for all of them."""
    spec = RunSpec(guard=GUARD, lane=Lane.BULK, source="benchmark")
    run_id = intake.create_run(found.services.engine, spec)
    with _feeding(found, run_id, spec):
        if not wait_until(lambda: _workers_of(found, run_id) == size, timeout_s=_READY_S):
            raise TimeoutError(f"{_workers_of(found, run_id)} of {size} devices judged anything")
        time.sleep(_WARM_UP_S + seconds)
        rate = _settled_per_s(found, run_id, seconds)
    settlement.cancel(found.services.engine, run_id)
    found.services.coordination.notices.cancelled(run_id)
    wait_until(lambda: not found.services.coordination.queues.length(GUARD, Lane.BULK), timeout_s=_READY_S)
    return rate


@contextmanager
def _feeding(found: Rig, run_id: str, spec: RunSpec) -> Iterator[None]:
    """A producer's thread that keeps the queue full."""
    done = threading.Event()
    texts = (Item(id=str(number), response=text_of(number, _TEXT_BYTES)) for number in itertools.count())
    items = itertools.takewhile(lambda _: not done.is_set(), texts)
    thread = threading.Thread(target=submit, args=(found.services, run_id, spec, items), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _workers_of(found: Rig, run_id: str) -> int:
    """How many devices have judged something of a run."""
    statement = sa.text("SELECT count(DISTINCT worker) FROM chunks WHERE run_id = :run_id")
    with found.services.engine.connect() as connection:
        return int(connection.scalar(statement, {"run_id": run_id}) or 0)


def _settled_per_s(found: Rig, run_id: str, seconds: int) -> float:
    """The rate over the last so many seconds, from one settlement to another: windows cut chunks in two."""
    statement = sa.text(
        """
        SELECT settled_at, count(*) AS items FROM verdicts
        WHERE run_id = :run_id AND settled_at > clock_timestamp() - make_interval(secs => :seconds)
        GROUP BY settled_at ORDER BY settled_at
        """
    )
    with found.services.engine.connect() as connection:
        rows = connection.execute(statement, {"run_id": run_id, "seconds": seconds}).all()
    span_s = (rows[-1].settled_at - rows[0].settled_at).total_seconds()
    return sum(row.items for row in rows[1:]) / span_s
