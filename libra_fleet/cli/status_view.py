"""The fleet's status on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.fleet_status import FleetStatus, OpenRun, Queue, Worker

_RUNS_SHOWN = 8
_WORKERS_SHOWN = 40
_NONE = Text("–", style="dim")


def status_view(fleet: FleetStatus, *, left_s: Mapping[str, float] | None = None) -> RenderableType:
    """Headline, queues, workers, open runs, and what is wrong. `left_s`: seconds until a run ends, by its id."""
    parts: list[RenderableType] = [_headline(fleet)]
    if fleet.queues:
        parts += [Text(), _queues(fleet.queues)]
    if fleet.workers:
        parts += [Text(), _workers(fleet.workers)]
    if fleet.runs:
        parts += [Text(), _runs(fleet.runs, left_s)]
    parts += [Text(), *_troubles(fleet)]
    return Group(*parts)


def _headline(fleet: FleetStatus) -> Text:
    facts = (
        _count(len(fleet.workers), "device"),
        _count(len(fleet.collectors), "collector"),
        _count(len(fleet.runs), "open run"),
        f"{fleet.verdicts_waiting:,} unsettled",
        f"{fleet.dead:,} dead",
        f"{fleet.parked:,} parked",
    )
    return Text(" · ".join(facts), style="bold")


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


def _queues(queues: tuple[Queue, ...]) -> Table:
    table = _table("queue", "lane", "waiting", "held", "oldest", numbers=3)
    for queue in queues:
        age = _age(queue.oldest_s) if queue.waiting else _NONE
        table.add_row(queue.guard, queue.lane.value, f"{queue.waiting:,}", f"{queue.held:,}", age)
    return table


def _workers(workers: tuple[Worker, ...]) -> Table:
    table = _table("worker", "guard", "on", "state", "busy", "items/s", "tok/s", "padding", "budget", numbers=5)
    for worker in workers[:_WORKERS_SHOWN]:
        table.add_row(
            _short(worker.id, 14),
            _short(worker.guard, 12),
            _short(worker.device, 6),
            worker.state,
            _share(worker.busy_share),
            _number(worker.items_per_s),
            _number(worker.tokens_per_s),
            _share(worker.padding_share),
            _number(worker.budget_tokens),
        )
    if len(workers) > _WORKERS_SHOWN:
        table.add_row(Text(f"… {len(workers) - _WORKERS_SHOWN:,} more", style="dim"))
    return table


def _short(text: str, width: int) -> str:
    """The end of an id says more than its start."""
    return text if len(text) <= width else "…" + text[1 - width :]


def _runs(runs: tuple[OpenRun, ...], left_s: Mapping[str, float] | None) -> Table:
    left = [] if left_s is None else ["left"]
    table = _table("open run", "guard", "lane", "settled", "of", "", *left, numbers=3 + len(left))
    for run in runs[:_RUNS_SHOWN]:
        whole = run.settled + run.pending
        share = Text(f"{run.settled / whole:.0%}" if whole else "–", style="" if run.expected is not None else "dim")
        more = "" if run.expected is not None else "+"
        end = [] if left_s is None else [_age(left_s[run.id]) if run.id in left_s else _NONE]
        table.add_row(run.name, run.guard, run.lane.value, f"{run.settled:,}", f"{whole:,}{more}", share, *end)
    if len(runs) > _RUNS_SHOWN:
        table.add_row(Text(f"… {len(runs) - _RUNS_SHOWN:,} more", style="dim"))
    return table


def _troubles(fleet: FleetStatus) -> list[Text]:
    if not fleet.troubles:
        return [Text("nothing is wrong", style="green")]
    return [Text(f"! {trouble}", style="bold red") for trouble in fleet.troubles]


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
