"""The findings of a drill: every fault with its recovery and its cost, and every promise that was broken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from rich.console import Console
from rich.table import Table

from libra_fleet.drill.faults import Fault
from libra_fleet.drill.ledger_probe import ChunkEnd

RECOVERY_GRACE_S: Final = 10.0
"""A recovery may take so much longer than the lease."""
_AOF_WINDOW_S: Final = 2.0
"""A killed broker forgets up to a second of what it had said (appendfsync everysec): acknowledgements as well."""


@dataclass
class InjectedFault:
    """One fault. Times are epoch seconds by the ledger's clock.

    `chunks` were in flight when it came; the look at them began at `looked`.
    """

    number: int
    fault: Fault
    hit: str
    looked: float
    at: float
    over: float
    chunks: set[str] = field(repr=False)
    recovered: float | None = None

    @property
    def recovery_s(self) -> float | None:
        """From the fault's end until items settled again and all that was in flight had settled."""
        return None if self.recovered is None else max(0.0, self.recovered - self.over)


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
                fault=each.fault.value,
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
        f"fault {each.number} ({each.fault}): "
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
    """Chunks in flight at the fault: those seen then, and those that settled from that look to the fault's end."""
    forgotten_s = _AOF_WINDOW_S if each.fault in (Fault.VALKEY, Fault.FLUSH) else 0.0
    return each.chunks.intersection(ends) | {
        chunk
        for chunk, end in ends.items()
        if end.settled_at is not None and each.looked - forgotten_s <= end.settled_at <= each.over
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
    for breach in report.breaches:
        out.print(f"[red]✗[/] {breach}")
    if not report.breaches:
        out.print("[green]✓[/] nothing lost, nothing doubled")
