"""The one screen of `libra fleet up`, and the same in plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from libra_fleet.machine.crew import Member
from libra_fleet.machine.status_view import status_view, troubles
from libra_fleet.machine.watching import items_per_s
from schemas.fleet import FleetSnapshot


def screen(
    title: str,
    members: Sequence[Member],
    fleet: FleetSnapshot | None,
    *,
    left_s: Mapping[str, float],
    notes: Iterable[str],
    warnings: Iterable[str],
) -> RenderableType:
    """Processes, the fleet's status, what happened lately. `fleet` is None while the servers do not answer."""
    parts: list[RenderableType] = [Text(title, style="bold"), _members(members), Text()]
    if fleet is None:
        parts.append(Text("the servers do not answer; everybody waits", style="bold red"))
    else:
        rate = items_per_s(fleet)
        parts.append(Text("– items/s" if rate is None else f"{rate:,.1f} items/s", style="bold"))
        parts.append(status_view(fleet, left_s=left_s))
    for heading, lines in (("lately", notes), ("last warnings", warnings)):
        shown = list(lines)
        if shown:
            parts += [Text(), Text(heading, style="dim"), *(Text(f"  {line}") for line in shown)]
    parts += [Text(), Text("Ctrl-C drains and ends; twice ends at once", style="dim")]
    return Group(*parts)


def _members(members: Sequence[Member]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("part", "state", "process", "restarts", "log"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    now = time.monotonic()
    for member in members:
        state = member.state(now)
        style = "green" if state in ("ready", "ran already") else "yellow"
        table.add_row(
            member.kind,
            Text(state, style=style),
            str(member.pid or "–"),
            Text(str(member.restarts), style="red" if member.restarts else "dim"),
            Text(member.log.name, style="dim"),
        )
    return table


def plain_line(members: Sequence[Member], fleet: FleetSnapshot | None, left_s: Mapping[str, float]) -> str:
    """Where everything stands, in one line."""
    if fleet is None:
        return "the servers do not answer; everybody waits"
    now = time.monotonic()
    rate = items_per_s(fleet)
    facts = [
        ", ".join(f"{member.kind} {member.state(now)}" for member in members),
        f"{sum(queue.waiting for queue in fleet.queues):,} chunks wait",
        "– items/s" if rate is None else f"{rate:,.1f} items/s",
    ]
    for run in fleet.runs:
        end = f", {left_s[run.id]:,.0f} s left" if run.id in left_s else ""
        facts.append(f"{run.name} {run.settled:,} of {run.settled + run.pending:,}{end}")
    return " · ".join([*facts, *(f"! {trouble}" for trouble in troubles(fleet))])
