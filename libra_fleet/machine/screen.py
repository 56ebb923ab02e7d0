"""The one screen of `libra up`, the same in plain lines, and the figures on them that need more than one look."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from libra_fleet.machine.fleet import FleetProcess
from libra_fleet.machine.status_view import status_view, troubles
from schemas.fleet import FleetSnapshot

_WINDOW_S: Final = 60.0
_SEEN_ENOUGH_S: Final = 3.0
_LONGEST_READ: Final = 1 << 20
_SEVERE: Final = ("warning", "error", "critical")


def screen(
    title: str,
    parts: Sequence[FleetProcess],
    fleet: FleetSnapshot | None,
    *,
    left_s: Mapping[str, float],
    notes: Iterable[str],
    warnings: Iterable[str],
) -> RenderableType:
    """Processes, the fleet's status, what happened lately. `fleet` is None while the servers do not answer."""
    lines: list[RenderableType] = [Text(title, style="bold"), _table(parts), Text()]
    if fleet is None:
        lines.append(Text("the servers do not answer; everybody waits", style="bold red"))
    else:
        rate = items_per_s(fleet)
        lines.append(Text("– items/s" if rate is None else f"{rate:,.1f} items/s", style="bold"))
        lines.append(status_view(fleet, left_s=left_s))
    for heading, texts in (("lately", notes), ("last warnings", warnings)):
        shown = list(texts)
        if shown:
            lines += [Text(), Text(heading, style="dim"), *(Text(f"  {line}") for line in shown)]
    lines += [Text(), Text("Ctrl-C drains and ends; twice ends at once", style="dim")]
    return Group(*lines)


def _table(parts: Sequence[FleetProcess]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("part", "state", "process", "restarts", "log"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    now = time.monotonic()
    for part in parts:
        state = part.state(now)
        style = "green" if state in ("ready", "ran already") else "yellow"
        table.add_row(
            part.kind,
            Text(state, style=style),
            str(part.pid or "–"),
            Text(str(part.process.exits), style="red" if part.process.exits else "dim"),
            Text(part.process.log.name if part.process.log else "–", style="dim"),
        )
    return table


def plain_line(parts: Sequence[FleetProcess], fleet: FleetSnapshot | None, left_s: Mapping[str, float]) -> str:
    """The state of everything, in one line."""
    if fleet is None:
        return "the servers do not answer; everybody waits"
    now = time.monotonic()
    rate = items_per_s(fleet)
    facts = [
        ", ".join(f"{part.kind} {part.state(now)}" for part in parts),
        f"{sum(queue.waiting for queue in fleet.queues):,} chunks wait",
        "– items/s" if rate is None else f"{rate:,.1f} items/s",
    ]
    for run in fleet.runs:
        end = f", {left_s[run.id]:,.0f} s left" if run.id in left_s else ""
        facts.append(f"{run.name} {run.settled:,} of {run.settled + run.pending:,}{end}")
    return " · ".join([*facts, *(f"! {trouble}" for trouble in troubles(fleet))])


class Warnings:
    """Reads what is added to some logs; keeps the last warnings and errors, a line each."""

    def __init__(self, logs: Mapping[str, Path], *, keep: int = 4) -> None:
        self._logs = logs
        self._read_to = {kind: log.stat().st_size if log.is_file() else 0 for kind, log in logs.items()}
        self.last: deque[str] = deque(maxlen=keep)

    def look(self) -> list[str]:
        """The new ones since the last look, oldest first."""
        fresh: list[str] = []
        for kind, log in self._logs.items():
            fresh += [f"{kind}: {line}" for line in map(_warning, self._added(kind, log)) if line]
        self.last.extend(fresh)
        return fresh

    def _added(self, kind: str, log: Path) -> list[str]:
        """Whole lines that were added; a torn one is left for the next look."""
        if not log.is_file():
            return []
        start = self._read_to[kind]
        with log.open("rb") as file:
            file.seek(start)
            content = file.read(_LONGEST_READ)
        whole = content.rfind(b"\n") + 1
        self._read_to[kind] = start + whole
        return content[:whole].decode(errors="replace").splitlines()


def _warning(line: str) -> str:
    """A log's line for a person, if it is a warning or worse; "" otherwise."""
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(entry, dict) or entry.get("level") not in _SEVERE:
        return ""
    time = str(entry.get("timestamp", ""))[11:19]
    reason = next((str(entry[key]) for key in ("error", "reason", "exit_code") if key in entry), "")
    return " ".join(filter(None, (time, str(entry.get("event", "")), reason)))[:200]


class RunPace:
    """Rates at which runs settle, over the last minute of looks, and so the time until each ends."""

    def __init__(self) -> None:
        self._looks: dict[str, deque[tuple[float, int]]] = {}

    def look(self, now: float, fleet: FleetSnapshot) -> dict[str, float]:
        """Seconds that are left, by run id: of sealed runs that have settled something since they were first seen."""
        left = {}
        self._looks = {run.id: self._looks.get(run.id, deque()) for run in fleet.runs}
        for run in fleet.runs:
            looks = self._looks[run.id]
            looks.append((now, run.settled))
            while len(looks) > 2 and looks[1][0] <= now - _WINDOW_S:
                looks.popleft()
            since, before = looks[0]
            if run.expected is not None and now - since >= _SEEN_ENOUGH_S and run.settled > before:
                left[run.id] = run.pending * (now - since) / (run.settled - before)
        return left


def items_per_s(fleet: FleetSnapshot) -> float | None:
    """Items that all workers judge a second, by their own last minute; None until one of them knows."""
    rates = [worker.items_per_s for worker in fleet.of_kind("worker") if worker.items_per_s is not None]
    return sum(rates) if rates else None
