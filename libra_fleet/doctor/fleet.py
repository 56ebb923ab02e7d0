"""The fleet as board and ledger see it: who is of another version, what nobody works on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version

import sqlalchemy as sa

from infra.coordination.store import CoordinationStore
from infra.ledger import outbox, reading, recovery
from libra_fleet.doctor.finding import Finding, error, good, warning
from schemas.fleet import Announcement, ready


def check_fleet(coordination: CoordinationStore, engine: sa.Engine) -> Iterator[Finding]:
    """Everything about the processes that have announced themselves and the work that waits for them."""
    announced = coordination.presence.announced()
    yield good("fleet", _who(announced))
    yield from check_versions(announced)
    yield from check_fingerprints(announced)
    yield from _lanes(coordination, engine, announced)
    yield from _collector(coordination, engine, announced)
    yield from _webhooks(engine, announced)
    if parked := coordination.dead_letters.count():
        yield warning(
            "parked messages",
            f"{parked:,} messages are parked",
            why="nobody here could read them; the items of a parked chunk come back after a lease",
            do="look for parked in the logs; upgrade what is older than the sender",
        )


def _who(announced: Iterable[Announcement]) -> str:
    counts = Counter(process.kind for process in announced)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nobody is announced"


def check_versions(announced: Iterable[Announcement], ours: str = version("libra-fleet")) -> Iterator[Finding]:
    """Who runs another version than this one."""
    for process in announced:
        if process.version != ours:
            yield warning(
                "fleet versions",
                f"{process.kind} {process.id} runs version {process.version or 'unknown'}, this is {ours}",
                why="newer messages are parked by older readers; settings and figures may differ",
                do="upgrade it, and restart it: one machine after the other is fine",
            )


def check_fingerprints(announced: Iterable[Announcement]) -> Iterator[Finding]:
    """Workers of one guard that are not the same guard."""
    seen: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for worker in announced:
        for mode, digest in (worker.fingerprints or {}).items():
            seen[str(worker.guard), mode][digest].append(worker.id)
    told: set[str] = set()
    for (guard, _), by_digest in seen.items():
        if len(by_digest) > 1 and guard not in told:
            told.add(guard)
            sides = "; ".join(f"{digest}: {', '.join(ids)}" for digest, ids in sorted(by_digest.items()))
            yield error(
                "fingerprints",
                f"the workers of {guard} differ in model, revision, prompt, dtype or engine ({sides})",
                why="a bulk run takes the verdicts of one fingerprint alone; what the others judge of it is refused",
                do=f"give all of them the same checkpoint, --dtype, --engine and version, and restart the others "
                f"(libra guards shows what {guard} should be)",
            )


def _lanes(coordination: CoordinationStore, engine: sa.Engine, announced: list[Announcement]) -> Iterator[Finding]:
    with engine.connect() as connection:
        lanes = recovery.lanes_with_pending(connection)
    for guard, lane in lanes:
        if not ready(announced, "worker", guard):
            waiting = coordination.queues.length(guard, lane)
            yield error(
                "lanes",
                f"{guard}, {lane.value}: work is pending ({waiting:,} chunks queued) and no worker of it is ready",
                why="nothing of it is judged",
                do=f"libra worker --guard {guard}",
            )


def _collector(coordination: CoordinationStore, engine: sa.Engine, announced: list[Announcement]) -> Iterator[Finding]:
    if any(process.kind == "collector" for process in announced):
        return
    waiting = coordination.queues.verdicts_waiting()
    pending = sum(run.counts.pending for run in reading.open_runs(engine))
    if waiting or pending:
        yield error(
            "collector",
            f"no collector runs; {waiting:,} judged chunks wait and {pending:,} items are pending",
            why="no verdict is settled, no run ends, and nothing that was lost comes back",
            do="libra collector",
        )


def _webhooks(engine: sa.Engine, announced: list[Announcement]) -> Iterator[Finding]:
    backlog = outbox.backlog(engine)
    if not backlog.due:
        return
    if not any(process.kind == "webhooks" for process in announced):
        yield error(
            "webhooks",
            f"{backlog.due:,} webhooks are due, the oldest for {backlog.oldest_s:,.0f} s, and no sender runs",
            why="platforms are not told what was decided",
            do="libra webhooks send",
        )
    elif backlog.oldest_s > 60:
        yield warning(
            "webhooks",
            f"{backlog.due:,} webhooks are due, the oldest for {backlog.oldest_s:,.0f} s",
            why="the senders do not keep up with what is decided",
            do="another libra webhooks send, or a higher LIBRA_WEBHOOK_CONNECTIONS",
        )
