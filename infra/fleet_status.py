"""The fleet as it stands: queues, workers, collectors, open runs. Read from board and ledger; knows no terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from infra.broker.app import queue_of
from infra.ledger import reading, recovery
from infra.ledger.engine import ledger_now
from infra.servers.services import Services
from schemas.fleet import Announcement
from schemas.messages import Lane

_OLD_S: Final = 60.0
"""A chunk that waits longer than this on the live lane is worth a word; on the bulk lane waiting is normal."""
_IDLE_SHARE: Final = 0.5
_SEEN_ENOUGH_S: Final = 20.0
_DEEP_CHUNKS: Final = 16
_BEHIND_CHUNKS: Final = 256


@dataclass(frozen=True)
class Queue:
    """One guard's lane: chunks that wait and that consumers hold, age in seconds of the one that comes next."""

    guard: str
    lane: Lane
    waiting: int
    held: int
    oldest_s: float | None

    @property
    def name(self) -> str:
        """As on the broker."""
        return queue_of(self.guard, self.lane)


@dataclass(frozen=True)
class Worker:
    """One device. The rates are over its last minute (`over_s` of it); None is not known yet."""

    id: str
    guard: str
    state: str
    device: str = "?"
    over_s: float = 0.0
    busy_share: float | None = None
    items_per_s: float | None = None
    tokens_per_s: float | None = None
    padding_share: float | None = None
    budget_tokens: int | None = None


@dataclass(frozen=True)
class OpenRun:
    """A run that has not ended. `expected` is None until it is sealed."""

    id: str
    name: str
    guard: str
    lane: Lane
    state: str
    accepted: int
    settled: int
    pending: int
    dead: int
    expected: int | None


@dataclass(frozen=True)
class FleetStatus:
    """Everything `libra status` shows. `troubles` are sentences for a person, the worst first."""

    queues: tuple[Queue, ...] = ()
    verdicts_waiting: int = 0
    workers: tuple[Worker, ...] = ()
    collectors: tuple[str, ...] = ()
    runs: tuple[OpenRun, ...] = ()
    parked: int = 0
    dead: int = 0
    troubles: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def read_fleet(services: Services) -> FleetStatus:
    """Look at board and ledger once."""
    announced = services.coordination.presence.announced()
    workers = tuple(sorted((_worker(one) for one in announced if one.kind == "worker"), key=lambda w: (w.guard, w.id)))
    runs = tuple(_open_run(status) for status in reading.open_runs(services.engine))
    with services.engine.connect() as connection:
        lanes = set(recovery.lanes_with_pending(connection))
    lanes |= {recovery.LaneKey(worker.guard, lane) for worker in workers for lane in Lane}
    now = ledger_now(services.engine)
    found = FleetStatus(
        queues=tuple(_queue(services, key, now) for key in sorted(lanes)),
        verdicts_waiting=services.coordination.queues.verdicts_waiting(),
        workers=workers,
        collectors=tuple(sorted(one.id for one in announced if one.kind == "collector")),
        runs=runs,
        parked=services.coordination.dead_letters.count(),
        dead=reading.dead_count(services.engine),
    )
    return FleetStatus(**{**vars(found), "troubles": tuple(troubles(found))})


def _queue(services: Services, key: recovery.LaneKey, now: float) -> Queue:
    coordination = services.coordination
    oldest = coordination.queues.oldest_enqueued_at(key.guard, key.lane)
    return Queue(
        guard=key.guard,
        lane=key.lane,
        waiting=coordination.queues.length(key.guard, key.lane),
        held=len(coordination.leases.held(queue_of(key.guard, key.lane))),
        oldest_s=max(0.0, now - oldest) if oldest else None,
    )


def _worker(found: Announcement) -> Worker:
    return Worker(
        id=found.id,
        guard=str(found.guard),
        state=found.state,
        device=found.device or "?",
        over_s=found.over_s or 0.0,
        busy_share=found.busy_share,
        items_per_s=found.items_per_s,
        tokens_per_s=found.tokens_per_s,
        padding_share=found.padding_share,
        budget_tokens=found.budget_tokens,
    )


def _open_run(status: reading.RunStatus) -> OpenRun:
    counts = status.counts
    return OpenRun(
        id=status.id,
        name=status.name,
        guard=status.spec.guard,
        lane=status.spec.lane,
        state=status.state.value,
        accepted=counts.accepted,
        settled=counts.settled,
        pending=counts.pending,
        dead=counts.dead,
        expected=status.expected,
    )


def troubles(fleet: FleetStatus) -> list[str]:
    """What is wrong, in sentences that say what would help."""
    return [*_unserved(fleet), *_unsettled(fleet), *_idle(fleet), *_set_aside(fleet)]


def _unserved(fleet: FleetStatus) -> list[str]:
    found = []
    for queue in fleet.queues:
        states = {worker.state for worker in fleet.workers if worker.guard == queue.guard}
        if not queue.waiting:
            continue
        chunks = f"{_chunks(queue.waiting)} on {queue.name}"
        if not states:
            found.append(f"{chunks} and no worker serves {queue.guard}: libra worker --guard {queue.guard}")
        elif "ready" not in states:
            found.append(f"{chunks} and every worker of {queue.guard} is {' or '.join(sorted(states))}")
        elif queue.lane is Lane.LIVE and (queue.oldest_s or 0) > _OLD_S:
            found.append(f"{chunks}, the oldest for {queue.oldest_s:.0f} s: {queue.guard} needs more workers")
    return found


def _chunks(count: int) -> str:
    return "1 chunk waits" if count == 1 else f"{count:,} chunks wait"


def _unsettled(fleet: FleetStatus) -> list[str]:
    pending = sum(run.pending for run in fleet.runs)
    finished = [run for run in fleet.runs if run.expected is not None and not run.pending]
    if not fleet.collectors and (pending or finished or fleet.verdicts_waiting):
        waiting = (
            f"{fleet.verdicts_waiting:,} judged chunks wait to be settled"
            if fleet.verdicts_waiting
            else "runs are open"
        )
        return [f"{waiting} and no collector runs: libra collector"]
    if fleet.verdicts_waiting > _BEHIND_CHUNKS:
        return [f"{fleet.verdicts_waiting:,} judged chunks wait to be settled: the collectors do not keep up"]
    return []


def _idle(fleet: FleetStatus) -> list[str]:
    """A device that has nothing to do while its queue is deep is held up by something else."""
    deep = {queue.guard: queue.name for queue in fleet.queues if queue.waiting >= _DEEP_CHUNKS}
    return [
        f"{worker.id} is busy {worker.busy_share:.0%} of the time though chunks wait on {deep[worker.guard]}"
        for worker in fleet.workers
        if worker.guard in deep
        and worker.state == "ready"
        and worker.over_s >= _SEEN_ENOUGH_S
        and worker.busy_share is not None
        and worker.busy_share < _IDLE_SHARE
    ]


def _set_aside(fleet: FleetStatus) -> list[str]:
    if not fleet.parked:
        return []
    count = "1 message is" if fleet.parked == 1 else f"{fleet.parked:,} messages are"
    return [f"{count} parked: what could not be read here; the logs say why (parked)"]
