"""The findings of a drill in ledger and queues: every fault with its recovery and cost, and every broken promise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from infra.servers.services import Services
from libra_fleet.drill.faults import Fault
from schemas.messages import Lane

RECOVERY_GRACE_S: Final = 10.0
"""A recovery may take so much longer than the lease."""
_AOF_WINDOW_S: Final = 2.0
"""A killed broker forgets up to a second of what it had said (appendfsync everysec): acknowledgements as well."""


class ChunkEnd(NamedTuple):
    """A chunk as it stands. `settled_at` is its last verdict's time, None while items are pending."""

    size: int
    attempt: int
    wasted: int
    settled_at: float | None


class Totals(NamedTuple):
    """Items of all runs in the ledger."""

    accepted: int
    settled: int
    dead: int


_ENDS = """
    SELECT c.run_id || '/' || c.chunk_no AS id, c.size, c.attempt, c.wasted,
           CASE WHEN c.settled = c.size THEN (
               SELECT extract(epoch FROM max(v.settled_at))::float8 FROM verdicts v
               WHERE v.run_id = c.run_id AND v.iteration = c.iteration
                 AND v.seq BETWEEN c.first_seq AND c.first_seq + c.size - 1) END AS settled_at
    FROM chunks c
"""


class LedgerProbe:
    """Questions to one ledger that holds nothing but the drill's runs."""

    def __init__(self, services: Services, guard: str) -> None:
        self._services = services
        self._guard = guard

    def in_flight(self) -> set[str]:
        """Chunks that are accepted, not queued and not settled."""
        unsettled: set[str] = set(self._column("SELECT run_id || '/' || chunk_no FROM chunks WHERE settled < size"))
        queued = [chunk for lane in Lane for chunk in self._services.coordination.queues.queued(self._guard, lane)]
        return unsettled.difference(queued)

    def first_settled_after(self, at: float) -> float | None:
        """The time at which the first item settled after `at` (epoch seconds by the ledger's clock), or None."""
        statement = (
            "SELECT extract(epoch FROM min(settled_at))::float8 FROM verdicts WHERE settled_at > to_timestamp(:at)"
        )
        first: float | None = self._column(statement, at=at)[0]
        return first

    def now(self) -> float:
        """The ledger's clock, epoch seconds."""
        return float(self._column("SELECT extract(epoch FROM clock_timestamp())::float8")[0])

    def totals(self) -> Totals:
        """The drill's progress."""
        statement = sa.text(
            "SELECT coalesce(sum(accepted), 0), coalesce(sum(settled), 0), coalesce(sum(dead), 0) FROM runs"
        )
        with self._services.engine.connect() as connection:
            row = connection.execute(statement).one()
        return Totals(*map(int, row))

    def unfinished(self, left_open: Sequence[str]) -> list[str]:
        """Names of runs that have not completed, save live ones and those that are left open on purpose."""
        statement = "SELECT name FROM runs WHERE state <> 'complete' AND lane <> 'live' AND name <> ALL(:left_open)"
        return [str(name) for name in self._column(statement, left_open=list(left_open))]

    def sealed_names(self) -> set[str]:
        """Names of the runs that are sealed or have ended."""
        return set(self._column("SELECT name FROM runs WHERE state <> 'open'"))

    def accepted_by_name(self) -> dict[str, int]:
        """How many items each run has accepted."""
        with self._services.engine.connect() as connection:
            return {row.name: row.accepted for row in connection.execute(sa.text("SELECT name, accepted FROM runs"))}

    def runs(self) -> list[str]:
        """Every run's id."""
        return [str(run) for run in self._column("SELECT id FROM runs ORDER BY created_at")]

    def ends(self) -> dict[str, ChunkEnd]:
        """Every chunk's end."""
        with self._services.engine.connect() as connection:
            rows = connection.execute(sa.text(_ENDS)).all()
        return {row.id: ChunkEnd(row.size, row.attempt, row.wasted, row.settled_at) for row in rows}

    def _column(self, statement: str, **values: object) -> Sequence[Any]:
        with self._services.engine.connect() as connection:
            return connection.scalars(sa.text(statement), values).all()


@dataclass
class InjectedFault:
    """One fault. Times are epoch seconds by the ledger's clock.

    `went_on` is when all others had recovered, where the fault is of a kind that must not hold them up.

    `chunks` were in flight when it came, and `attempts` are those of all chunks then; the look at them began at
    `looked`.
    """

    number: int
    fault: Fault
    hit: str
    looked: float
    at: float
    over: float
    chunks: set[str] = field(repr=False)
    attempts: Mapping[str, int] = field(default_factory=dict, repr=False)
    went_on: float | None = None
    recovered: float | None = None

    @property
    def recovery_s(self) -> float | None:
        """How long until items settled again and all that was in flight had settled: from the fault's end.

        Where others must go on meanwhile: from its start or from its end, whichever took longer.
        """
        if self.recovered is None or (self.fault.others_go_on and self.went_on is None):
            return None
        during_s = self.went_on - self.at if self.went_on is not None else 0.0
        return max(0.0, self.recovered - self.over, during_s)


@dataclass(frozen=True)
class FaultLine:
    """A fault as the report shows it. Items tried again count by their chunk; wasted items were judged again."""

    number: int
    fault: str
    hit: str
    at_s: float
    lasted_s: float
    in_flight_items: int
    recovery_s: float | None
    tried_again_items: int
    wasted_items: int


@dataclass(frozen=True)
class DrillReport:
    """Everything about a drill, which passed if there are no breaches."""

    seed: int
    lease_s: float
    cores: int
    seconds: float
    runs: int
    items: int
    settled: int
    faults: tuple[FaultLine, ...]
    worst_recovery_s: float
    in_flight_items: int
    tried_again_items: int
    wasted_items: int
    poisoned_items: int
    wrong_items: int
    false_deaths: int
    acknowledged_calls: int
    breaches: tuple[str, ...]

    def to_json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)


def lines_of(injected: Sequence[InjectedFault], ends: Mapping[str, ChunkEnd], started: float) -> list[FaultLine]:
    """The faults and their cost; a chunk's cost is charged to the first fault that hit it."""
    charged: set[str] = set()
    lines = []
    for each in injected:
        mine = _hit_by(each, ends)
        costs = [ends[chunk] for chunk in mine - charged]
        charged |= mine
        lines.append(
            FaultLine(
                number=each.number,
                fault=each.fault.name,
                hit=each.hit,
                at_s=round(each.at - started, 2),
                lasted_s=round(each.over - each.at, 2),
                in_flight_items=sum(ends[chunk].size for chunk in mine),
                recovery_s=None if each.recovery_s is None else round(each.recovery_s, 2),
                tried_again_items=sum(end.size * (end.attempt - 1) for end in costs),
                wasted_items=sum(end.wasted for end in costs),
            )
        )
    return lines


def broken_bounds(injected: Sequence[InjectedFault], ends: Mapping[str, ChunkEnd], *, lease_s: float) -> list[str]:
    """Faults that took too long to recover from, and chunks that were judged again though no fault had hit them."""
    limit_s = lease_s + RECOVERY_GRACE_S
    slow = [
        f"fault {each.number} ({each.fault.name}): "
        + ("no recovery" if each.recovery_s is None else f"recovery took {each.recovery_s:.1f} s, over {limit_s:g} s")
        for each in injected
        if each.recovery_s is None or each.recovery_s > limit_s
    ]
    hits: dict[str, int] = {}
    for each in injected:
        for chunk in _hit_by(each, ends):
            hits[chunk] = hits.get(chunk, 0) + 1
    vain = [
        f"chunk {chunk}: {end.wasted} of {end.size} verdicts discarded, {hits.get(chunk, 0)} faults hit it, "
        f"{end.attempt - 1} times tried again"
        for chunk, end in ends.items()
        if end.wasted > end.size * hits.get(chunk, 0)
    ]
    return slow + vain


def _hit_by(each: InjectedFault, ends: Mapping[str, ChunkEnd]) -> set[str]:
    """Chunks in flight at the fault: those seen then, and those that settled from that look to the recovery."""
    forgotten_s = _AOF_WINDOW_S if each.fault.loses_queue else 0.0
    return each.chunks.intersection(ends) | {
        chunk
        for chunk, end in ends.items()
        if end.settled_at is not None and each.looked - forgotten_s <= end.settled_at <= (each.recovered or each.over)
    }


def show(report: DrillReport, out: Console) -> None:
    """Print the report for a person."""
    table = Table("", "fault", "hit", "at s", "in flight", "recovery s", "tried again", "wasted", box=None)
    for line in report.faults:
        recovery = "[red]none[/]" if line.recovery_s is None else f"{line.recovery_s:.1f}"
        table.add_row(
            str(line.number),
            line.fault,
            line.hit,
            f"{line.at_s:.0f}",
            str(line.in_flight_items),
            recovery,
            str(line.tried_again_items),
            str(line.wasted_items),
        )
    out.print(table)
    out.print(
        f"{len(report.faults)} faults · {report.items:,} items in {report.runs} runs · {report.seconds:,.0f} s · "
        f"{report.cores} cores · seed {report.seed}"
    )
    out.print(
        f"{report.settled:,} settled · worst recovery {report.worst_recovery_s:.1f} s "
        f"(lease {report.lease_s:g} s + {RECOVERY_GRACE_S:g} s allowed)"
    )
    out.print(
        f"{report.in_flight_items:,} items in flight at the faults · {report.tried_again_items:,} tried again · "
        f"{report.wasted_items:,} verdicts discarded"
    )
    out.print(
        f"{report.wrong_items:,} wrong verdicts · {report.false_deaths:,} false deaths · {report.poisoned_items:,} "
        f"poisonous items died · {report.acknowledged_calls:,} calls acknowledged"
    )
    for breach in report.breaches:
        out.print(f"[red]✗[/] {breach}")
    if not report.breaches:
        out.print("[green]✓[/] nothing lost, nothing doubled, nothing wrong")
