"""The output of commands: results to standard output, everything said to a person to standard error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.ledger.runs import RunStatus
from producer.datasets import Validation
from producer.report.facts import to_json
from producer.report.terminal import render
from schemas.items import Label
from schemas.runs import InvalidRow, RunReport
from schemas.verdicts import Outcome, Verdict

_BAD_ROWS_SHOWN: Final = 10

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False)


def say(message: str) -> None:
    """Print a message for the person at the terminal, on standard error."""
    err.print(message, markup=False, style="dim")


def listed_rows(head: str, rows: Sequence[InvalidRow], *, count: int | None = None) -> str:
    """A line, and below it the first bad rows with their places; `count` says how many there are in all."""
    shown = [f"  {row.where}: {row.problem}" for row in rows[:_BAD_ROWS_SHOWN]]
    more = (len(rows) if count is None else count) - len(shown)
    return "\n".join([head, *shown, *([f"  … and {more:,} more"] if more > 0 else [])])


def bad_rows(validation: Validation) -> str:
    """How many rows are bad, and the first of them with their places."""
    count = validation.invalid_count
    return listed_rows(f"{count:,} bad {'row' if count == 1 else 'rows'}:", validation.invalid, count=count)


def print_report(report: RunReport, *, as_json: bool, price_per_device_hour: float | None = None) -> None:
    """Print a run's report; with a price, its cost in money too."""
    if as_json:
        click.echo(to_json(report, price_per_device_hour=price_per_device_hour))
    else:
        render(report, out, price_per_device_hour=price_per_device_hour)


def run_facts(status: RunStatus) -> dict[str, object]:
    """The state of a run as JSON has it."""
    return {
        "run": status.id,
        "name": status.name,
        "state": status.state.value,
        "guard": status.spec.guard,
        "mode": status.spec.mode.value,
        "source": status.spec.source,
        "parent": status.spec.parent,
        "expected": status.expected,
        **status.counts.model_dump(),
        "seconds": round(status.seconds, 3),
        "created_at": status.created_at.isoformat(),
    }


def print_json(content: object) -> None:
    """Print anything as indented JSON, Chinese as it is."""
    click.echo(json.dumps(content, ensure_ascii=False, indent=2))


def print_runs(found: Sequence[RunStatus]) -> None:
    """Print a table of runs; their names are never cut, since the next command needs them."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for column in ("guard", "state"):
        table.add_column(column, no_wrap=True)
    children = any(status.spec.parent for status in found)
    if children:
        table.add_column("child of", overflow="fold")
    for column in ("settled", "of", "dead"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("created (UTC)", no_wrap=True)
    for status in found:
        counts = status.counts
        accepted = f"{counts.accepted * status.spec.repeat:,}+"
        table.add_row(
            Text(status.name),
            Text(status.spec.guard),
            status.state.value,
            *([Text(status.spec.parent or "–")] if children else []),
            f"{counts.settled:,}",
            accepted if status.expected is None else f"{status.expected:,}",
            f"{counts.dead:,}",
            f"{status.created_at:%Y-%m-%d %H:%M}",
        )
    out.print(table)


def print_verdict(verdict: Verdict, *, as_json: bool) -> None:
    """Print one verdict."""
    if as_json:
        click.echo(verdict.model_dump_json(exclude={"seq"}, exclude_none=True))
    elif verdict.label is None:
        line = Text(verdict.outcome.value, style="yellow" if verdict.outcome is Outcome.UNPARSEABLE else "red")
        out.print(line.append(f"  {verdict.reason or verdict.raw or ''}", style="not bold default"))
    else:
        line = Text(verdict.label.value, style="bold green" if verdict.label is Label.SAFE else "bold red")
        if verdict.p_unsafe is not None:
            line.append(f"  p(unsafe) = {verdict.p_unsafe:.4f}", style="not bold default")
        if verdict.cached:
            line.append("  (from the cache)", style="not bold dim default")
        out.print(line)
