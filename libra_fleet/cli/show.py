"""The output of commands: results to standard output, what is said to a person to standard error; reports and pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.errors import RunError, UsageError
from infra.ledger.runs import RunStatus, stages_of, stored_report
from infra.servers.services import Services
from libra_fleet.cli.options import QualityGate, ReportOptions
from producer.datasets import Validation
from producer.report.cascade import cascade_report
from producer.report.terminal import render
from producer.report.view import average, to_json
from schemas.items import Label
from schemas.runs import InvalidRow, RunReport, RunState
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
    """The number of bad rows, and the first of them with their places."""
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
    children = any(status.spec.parent for status in found)
    table.add_column("run", overflow="fold")
    for column in ("guard", "state"):
        table.add_column(column, no_wrap=True)
    if children:
        table.add_column("child of", overflow="fold")
    for column in ("settled", "of", "dead"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("created (UTC)", no_wrap=True)
    for status in found:
        counts, spec = status.counts, status.spec
        of = f"{counts.accepted * spec.repeat:,}+" if status.expected is None else f"{status.expected:,}"
        cells = [Text(status.name), Text(spec.guard), status.state.value]
        cells += [Text(spec.parent or "–")] if children else []
        table.add_row(*cells, f"{counts.settled:,}", of, f"{counts.dead:,}", f"{status.created_at:%Y-%m-%d %H:%M}")
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


def prepare(report_options: ReportOptions) -> None:
    """See that the report's files can be written, before hours of work go into it."""
    for option, file in (("--out", report_options.out), ("--html", report_options.html)):
        if file is not None:
            writable(option, file)
    if report_options.html is not None:
        pages()


def writable(option: str, file: Path) -> None:
    """See that an option's file can be written; its folder is made."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror}") from error


def finish(found: Services, run_id: str, report_options: ReportOptions) -> None:
    """Write and show the report of a run that has ended; the files first, since who reads the output may leave."""
    stored = report_of(found, run_id)
    if stored is None:
        raise RunError(f"run {run_id} ended without a report")
    price = found.settings.price_per_device_hour
    if report_options.out:
        report_options.out.write_text(to_json(stored, price_per_device_hour=price) + "\n", encoding="utf-8")
        say(f"report written to {report_options.out}")
    if report_options.html:
        write_page(found, stored, report_options.html)
    print_report(stored, as_json=report_options.as_json, price_per_device_hour=price)
    _require_outcome(stored, report_options.fail_under)


def _require_outcome(report: RunReport, gates: Sequence[QualityGate]) -> None:
    """Let the command fail where its run did."""
    if report.state is RunState.CANCELLED:
        raise RunError(f"run {report.name} was cancelled")
    averages = average(report)
    for gate in gates:
        metric = averages.metric(gate.metric) if averages else None
        if metric is None or metric.value is None:
            raise RunError(f"{gate.metric} is undefined: {metric and metric.undefined}")
        if metric.value < gate.floor:
            raise RunError(f"{gate.metric} is {metric.value:.4f}, below {gate.floor:g}")
    if report.counts.dead:
        raise RunError(f"{report.counts.dead:,} items died; their reasons are in the report")


def report_of(found: Services, run_id: str) -> RunReport | None:
    """The report of a run that has ended, or None; of a cascade's first run, over all of its stages."""
    stages = stages_of(found.engine, run_id)
    if stages[0].spec.stages and stages[0].state.ended:
        return cascade_report(found.engine, stages)
    return stored_report(found.engine, run_id)


def write_page(found: Services, report: RunReport, file: Path, *, with_text: bool = True) -> None:
    """Write the page of a run and name it."""
    page = pages()
    save_page(file, page.run_page(report, page.gather(found.engine, report), with_text=with_text))


def save_page(file: Path, page: str) -> None:
    """Write a page and name it."""
    writable("--html", file)
    file.write_text(page, encoding="utf-8")
    say(f"page written to {file}")


def pages() -> ModuleType:
    """The module that writes pages; loaded when it is asked for, since drawing takes a second to load."""
    try:
        from producer.report import page  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"pages need another package ({error}): pip install 'libra-fleet[report]'") from error
    return page
