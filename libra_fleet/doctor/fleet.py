"""The fleet as one look at the servers finds it: processes of different versions, work that nobody does."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import version

from libra_fleet.doctor import Finding, error, good, warning
from schemas.fleet import FleetSnapshot, ready

_OURS = version("libra-fleet")


def check_fleet(fleet: FleetSnapshot) -> Iterator[Finding]:
    """Findings on the announced processes and on the work that waits for them."""
    for server, reason in fleet.away.items():
        yield error(
            "fleet",
            f"the {server} stopped answering: {reason}",
            why="the rest of the fleet could not be examined",
            do="run libra fleet doctor again once the server answers",
        )
    if fleet.away:
        return
    kinds = Counter(process.kind for process in fleet.announced)
    running = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    yield good("fleet", running or "no process of the fleet is running")
    for process in fleet.announced:
        if process.version != _OURS:
            yield warning(
                "fleet versions",
                f"{process.kind} {process.id} runs version {process.version or 'unknown'}, this is {_OURS}",
                why="older processes send newer messages to the dead-letter queue; settings and figures may differ",
                do="upgrade it and restart it; one machine after the other is fine",
            )
    yield from _fingerprints(fleet)
    yield from _work(fleet)
    if fleet.dead_letters:
        yield warning(
            "parked messages",
            f"{fleet.dead_letters:,} messages in the dead-letter queue",
            why="no process here could read them; the items of a chunk among them are queued again after a lease",
            do="look for events ending in _parked in the logs; upgrade the processes that are older than the sender",
        )


def _fingerprints(fleet: FleetSnapshot) -> Iterator[Finding]:
    """Workers of one guard that are not the same guard."""
    seen: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for worker in fleet.announced:
        for mode, digest in (worker.fingerprints or {}).items():
            seen[str(worker.guard), mode][digest].append(worker.id)
    differing: dict[str, dict[str, list[str]]] = {}
    for (guard, _), by_digest in seen.items():
        if len(by_digest) > 1:
            differing.setdefault(guard, by_digest)  # one mode is enough: the others differ likewise
    for guard, by_digest in differing.items():
        sides = "; ".join(f"{digest}: {', '.join(ids)}" for digest, ids in sorted(by_digest.items()))
        yield error(
            "fingerprints",
            f"the workers of {guard} differ in model, revision, prompt, dtype or engine ({sides})",
            why="a bulk run takes the verdicts of one fingerprint only; those of the other workers are refused",
            do="give all of them the same checkpoint, --dtype, --engine and version, and restart those that differ "
            f"(libra guards shows what {guard} should be)",
        )


def _work(fleet: FleetSnapshot) -> Iterator[Finding]:
    """Work that waits for processes that are not there, or too few."""
    for queue in fleet.queues:
        if queue.pending and not ready(fleet.announced, "worker", queue.guard):
            yield error(
                "lanes",
                f"{queue.guard}, {queue.lane.value}: work is pending ({queue.waiting:,} chunks queued) and no worker "
                "for it is ready",
                why="none of it is judged",
                do=f"libra fleet worker --guard {queue.guard}",
            )
    pending = sum(run.pending for run in fleet.runs)
    if (fleet.verdicts_waiting or pending) and not fleet.of_kind("collector"):
        yield error(
            "collector",
            f"no collector runs; {fleet.verdicts_waiting:,} judged chunks wait and {pending:,} items are pending",
            why="no verdict is settled, no run ends, and no lost chunk is queued again",
            do="libra fleet collector",
        )
    due = f"{fleet.webhooks_due:,} webhooks are due, the oldest for {fleet.webhooks_due_s:,.0f} s"
    if fleet.webhooks_due and not fleet.of_kind("webhooks"):
        yield error(
            "webhooks",
            f"{due}, and no sender runs",
            why="platforms do not learn what was decided",
            do="libra fleet webhooks",
        )
    elif fleet.webhooks_due and fleet.webhooks_due_s > 60:
        yield warning(
            "webhooks",
            due,
            why="the senders do not keep up with the decisions",
            do="start another libra fleet webhooks, or raise LIBRA_WEBHOOK_CONNECTIONS",
        )
