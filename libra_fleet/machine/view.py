"""The fleet for a person: what is wrong in sentences, its status as JSON and on a terminal, and the screen of `up`."""

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

from infra.broker.app import queue_of
from libra_fleet.machine.fleet import FleetProcess
from schemas.fleet import READY, FleetSnapshot, OpenRun, ready
from schemas.messages import Lane

_WINDOW_S: Final = 60.0
_PACE_KNOWN_S: Final = 3.0
_LONGEST_READ: Final = 1 << 20
_SEVERE: Final = ("warning", "error", "critical")
_AWAY: Final = "the servers do not answer; everybody waits"
_OLD_S: Final = 60.0
"""A chunk that waits longer than this on the live lane is worth a word; on the bulk lane waiting is normal."""
_IDLE_SHARE: Final = 0.5
_SEEN_ENOUGH_S: Final = 20.0
_DEEP_CHUNKS: Final = 16
_BEHIND_CHUNKS: Final = 256
_RUNS_SHOWN: Final = 8
_WORKERS_SHOWN: Final = 40
_NONE: Final = Text("–", style="dim")
_PACE: Final = ("busy_share", "items_per_s", "tokens_per_s", "padding_share", "budget_tokens")


def troubles(fleet: FleetSnapshot) -> list[str]:
    """A sentence for each thing that is wrong, with what would help; the worst first."""
    found = []
    for queue in (queue for queue in fleet.queues if queue.waiting):
        states = {worker.state for worker in fleet.of_kind("worker") if worker.guard == queue.guard}
        count = "1 chunk waits" if queue.waiting == 1 else f"{queue.waiting:,} chunks wait"
        chunks = f"{count} on {queue_of(queue.guard, queue.lane)}"
        if not states:
            found.append(f"{chunks} and no worker serves {queue.guard}: libra fleet worker --guard {queue.guard}")
        elif READY not in states:
            found.append(f"{chunks} and every worker of {queue.guard} is {' or '.join(sorted(states))}")
        elif queue.lane is Lane.LIVE and (queue.oldest_s or 0) > _OLD_S:
            found.append(f"{chunks}, the oldest for {queue.oldest_s:.0f} s: {queue.guard} needs more workers")
    unsettled = f"{fleet.verdicts_waiting:,} judged chunks wait to be settled"
    open_ = any(run.pending or run.expected is not None for run in fleet.runs)
    if not fleet.of_kind("collector") and (open_ or fleet.verdicts_waiting):
        waiting = unsettled if fleet.verdicts_waiting else "runs are open"
        found.append(f"{waiting} and no collector runs: libra fleet collector")
    elif fleet.verdicts_waiting > _BEHIND_CHUNKS:
        found.append(f"{unsettled}: the collectors do not keep up")
    # A device that has nothing to do while its queue is deep is held up by something else.
    deep = {queue.guard: queue_of(queue.guard, queue.lane) for queue in fleet.queues if queue.waiting >= _DEEP_CHUNKS}
    found += [
        f"{worker.id} is busy {worker.busy_share:.0%} of the time though chunks wait on {deep[worker.guard]}"
        for worker in ready(fleet.announced, "worker")
        if worker.guard in deep
        and (worker.over_s or 0) >= _SEEN_ENOUGH_S
        and worker.busy_share is not None
        and worker.busy_share < _IDLE_SHARE
    ]
    found += [
        f"device {worker.device} of {worker.id} failed, and is tried again: {worker.trouble or 'its log says why'}"
        for worker in fleet.of_kind("worker")
        if worker.state == "quarantined"
    ]
    return found + _set_aside(fleet)


def _set_aside(fleet: FleetSnapshot) -> list[str]:
    found = []
    if fleet.dead_letters:
        count = "1 message is" if fleet.dead_letters == 1 else f"{fleet.dead_letters:,} messages are"
        found.append(f"{count} in the dead-letter queue: no process here could read them; the logs say why (*_parked)")
    if fleet.verdicts_kept:
        chunks = _count(fleet.verdicts_kept, "judged chunk")
        found.append(f"{chunks} could not be settled; the collectors' logs say why. Afterwards: libra run dead settle")
    return found


def status_facts(fleet: FleetSnapshot) -> dict[str, Any]:
    """The status as `--json` prints it."""
    return {
        "queues": [queue.model_dump(mode="json", exclude={"pending", "pending_s"}) for queue in fleet.queues],
        "verdicts_waiting": fleet.verdicts_waiting,
        "workers": [
            {
                "id": worker.id,
                "guard": worker.guard,
                "state": worker.state,
                "device": worker.device or "?",
                "over_s": worker.over_s or 0.0,
                **{name: getattr(worker, name) for name in _PACE},
            }
            for worker in fleet.of_kind("worker")
        ],
        "collectors": [collector.id for collector in fleet.of_kind("collector")],
        "runs": [run.model_dump(mode="json") for run in fleet.runs],
        "parked": fleet.dead_letters,
        "verdicts_kept": fleet.verdicts_kept,
        "dead": fleet.dead_items,
        "troubles": troubles(fleet),
    }


def status_view(fleet: FleetSnapshot, *, left_s: Mapping[str, float] | None = None) -> RenderableType:
    """Headline, queues, workers, open runs, and what is wrong. `left_s`: seconds until a run ends, by its id."""
    facts = (
        _count(len(fleet.of_kind("worker")), "device"),
        _count(len(fleet.of_kind("collector")), "collector"),
        _count(len(fleet.runs), "open run"),
        f"{fleet.verdicts_waiting:,} unsettled",
        f"{fleet.dead_items:,} dead",
        f"{fleet.dead_letters:,} parked",
    )
    parts: list[RenderableType] = [Text(" · ".join(facts), style="bold")]
    if fleet.queues:
        table = _table("queue", "lane", "waiting", "held", "oldest", numbers=3)
        for queue in fleet.queues:
            age = _age(queue.oldest_s) if queue.waiting else _NONE
            table.add_row(queue.guard, queue.lane.value, f"{queue.waiting:,}", f"{queue.held:,}", age)
        parts += [Text(), table]
    if workers := fleet.of_kind("worker"):
        table = _table("worker", "guard", "on", "state", "busy", "items/s", "tok/s", "padding", "budget", numbers=5)
        for worker in workers[:_WORKERS_SHOWN]:
            table.add_row(
                _short(worker.id, 14),
                _short(worker.guard or "?", 12),
                _short(worker.device or "?", 6),
                worker.state,
                _share(worker.busy_share),
                _number(worker.items_per_s),
                _number(worker.tokens_per_s),
                _share(worker.padding_share),
                _number(worker.budget_tokens),
            )
        if len(workers) > _WORKERS_SHOWN:
            table.add_row(Text(f"… {len(workers) - _WORKERS_SHOWN:,} more", style="dim"))
        parts += [Text(), table]
    if fleet.runs:
        parts += [Text(), _runs(fleet.runs, left_s)]
    found = [Text(f"! {trouble}", style="bold red") for trouble in troubles(fleet)]
    return Group(*parts, Text(), *(found or [Text("nothing is wrong", style="green")]))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _table(*headings: str, numbers: int) -> Table:
    """A table without lines, whose last columns hold so many numbers."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="dim")
    for place, heading in enumerate(headings):
        is_number = place >= len(headings) - numbers
        table.add_column(
            heading, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis", max_width=22
        )
    return table


def _whole_names(table: Table) -> Table:
    """The table with its first column never cut: a run's name is what the next command is given."""
    table.columns[0].max_width = None
    table.columns[0].no_wrap = False
    table.columns[0].overflow = "fold"
    return table


def _short(text: str, width: int) -> str:
    """The end of an id says more than its start."""
    return text if len(text) <= width else "…" + text[1 - width :]


def _runs(runs: tuple[OpenRun, ...], left_s: Mapping[str, float] | None) -> Table:
    left = [] if left_s is None else ["left"]
    table = _whole_names(_table("open run", "guard", "lane", "settled", "of", "", *left, numbers=3 + len(left)))
    for run in runs[:_RUNS_SHOWN]:
        whole = run.settled + run.pending
        share = Text(f"{run.settled / whole:.0%}" if whole else "–", style="" if run.expected is not None else "dim")
        more = "" if run.expected is not None else "+"
        end = [] if left_s is None else [_age(left_s[run.id]) if run.id in left_s else _NONE]
        table.add_row(run.name, run.guard, run.lane.value, f"{run.settled:,}", f"{whole:,}{more}", share, *end)
    if len(runs) > _RUNS_SHOWN:
        table.add_row(Text(f"… {len(runs) - _RUNS_SHOWN:,} more", style="dim"))
    return table


def _share(value: float | None) -> Text:
    return _NONE if value is None else Text(f"{value:.0%}")


def _number(value: float | None) -> Text:
    if value is None:
        return _NONE
    if value >= 10_000:
        return Text(f"{value / 1_000:,.0f}k")
    return Text(f"{value:,.0f}" if value >= 10 else f"{value:.1f}")


def _age(seconds: float | None) -> Text:
    if seconds is None:
        return Text("?", style="dim")
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return Text(f"{seconds / size:,.0f} {unit}")
    return Text(f"{seconds:,.1f} s")


def screen(
    title: str,
    parts: Sequence[FleetProcess],
    fleet: FleetSnapshot | None,
    *,
    left_s: Mapping[str, float],
    notes: Iterable[str],
    warnings: Iterable[str],
    facts: Sequence[str] = (),
) -> RenderableType:
    """Processes, the fleet's status, what happened lately. `fleet` is None while the servers do not answer.

    `facts` stand on lines of their own below the title, whatever the width: an address is never cut.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("part", "state", "process", "restarts", "log"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    now = time.monotonic()
    for part in parts:
        state = part.state(now)
        table.add_row(
            part.kind,
            Text(state, style="green" if state in ("ready", "ran already") else "yellow"),
            str(part.pid or "–"),
            Text(str(part.process.exits), style="red" if part.process.exits else "dim"),
            Text(part.process.log.name if part.process.log else "–", style="dim"),
        )
    head = [Text(title, style="bold"), *(Text(fact, overflow="fold") for fact in facts)]
    lines: list[RenderableType] = [*head, Text(), table, Text()]
    if fleet is None:
        lines.append(Text(_AWAY, style="bold red"))
    else:
        lines.append(Text(_rate(fleet), style="bold"))
        lines.append(status_view(fleet, left_s=left_s))
    for heading, texts in (("lately", notes), ("last warnings", warnings)):
        shown = list(texts)
        if shown:
            lines += [Text(), Text(heading, style="dim"), *(Text(f"  {line}") for line in shown)]
    lines += [Text(), Text("Ctrl-C drains and ends; twice ends at once", style="dim")]
    return Group(*lines)


def plain_line(parts: Sequence[FleetProcess], fleet: FleetSnapshot | None, left_s: Mapping[str, float]) -> str:
    """The state of everything, in one line."""
    if fleet is None:
        return _AWAY
    now = time.monotonic()
    facts = [
        ", ".join(f"{part.kind} {part.state(now)}" for part in parts),
        f"{sum(queue.waiting for queue in fleet.queues):,} chunks wait",
        _rate(fleet),
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
        """The new ones since the last look, oldest first; a torn line is left for the next look."""
        fresh: list[str] = []
        for kind, log in self._logs.items():
            if not log.is_file():
                continue
            with log.open("rb") as file:
                file.seek(self._read_to[kind])
                content = file.read(_LONGEST_READ)
            whole = content.rfind(b"\n") + 1
            self._read_to[kind] += whole
            lines = content[:whole].decode(errors="replace").splitlines()
            fresh += [f"{kind}: {warning}" for warning in map(_warning, lines) if warning]
        self.last.extend(fresh)
        return fresh


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
            if run.expected is not None and now - since >= _PACE_KNOWN_S and run.settled > before:
                left[run.id] = run.pending * (now - since) / (run.settled - before)
        return left


def items_per_s(fleet: FleetSnapshot) -> float | None:
    """Items that all workers judge a second, by their own last minute; None until one of them knows."""
    rates = [worker.items_per_s for worker in fleet.of_kind("worker") if worker.items_per_s is not None]
    return sum(rates) if rates else None


def _rate(fleet: FleetSnapshot) -> str:
    rate = items_per_s(fleet)
    return "– items/s" if rate is None else f"{rate:,.1f} items/s"
