"""The output of commands: results to standard output, what is said to a person to standard error; reports and pages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from infra.errors import RunError, UsageError
from infra.ledger.runs import RunStatus, stages_of, stored_report
from infra.servers.services import Services
from libra_fleet.cli.options import QualityGate, ReportOptions
from producer.datasets import Validation
from producer.report.cascade import cascade_report
from producer.report.terminal import ENDLESS, render
from producer.report.view import average, printable, to_json
from schemas.items import Item, Kind, Label
from schemas.runs import InvalidRow, RunCounts, RunReport, RunSpec, RunState
from schemas.verdicts import Outcome, Verdict

_BAD_ROWS_SHOWN: Final = 10
_TEXT_SHOWN: Final = 300


class _Output(Console):
    """Standard output: as wide as its terminal (or COLUMNS), and as wide as needed where none reads it."""

    @property
    def size(self) -> ConsoleDimensions:
        """In columns and lines."""
        known = super().size
        return known if self.is_terminal or self._width is not None else ConsoleDimensions(ENDLESS, known.height)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size


err = Console(stderr=True, highlight=False, soft_wrap=True)
out = _Output(highlight=False)


def say(message: str) -> None:
    """Print a message for the person at the terminal, on standard error."""
    err.print(message, markup=False, style="dim")


def listed_rows(head: str, rows: Sequence[InvalidRow], *, count: int | None = None) -> str:
    """A line, and below it the first bad rows with their places; `count` says how many there are in all."""
    shown = [f"  {row.where}: {row.problem}" for row in rows[:_BAD_ROWS_SHOWN]]
    more = (len(rows) if count is None else count) - len(shown)
    return "\n".join([head, *shown, *([f"  … and {more:,} more"] if more > 0 else [])])


def bad_rows(validation: Validation) -> str:
    """The number of bad rows, and for each kind the first of them with its place and the option that would help."""
    count = validation.invalid_count
    lines = [f"{count:,} bad {'row' if count == 1 else 'rows'}:"]
    for fault in validation.faults[:_BAD_ROWS_SHOWN]:
        more = f"  (and {fault.rows - 1:,} more like it)" if fault.rows > 1 else ""
        lines.append(f"  {fault.first.where}: {fault.first.problem}{more}")
        if fault.switch:
            lines.append(f"    try {fault.switch}")
    hidden = sum(fault.rows for fault in validation.faults[_BAD_ROWS_SHOWN:])
    return "\n".join([*lines, *([f"  … and {hidden:,} of other kinds"] if hidden else [])])


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


def print_listing(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print a table whose cells are never cut: what is listed is what the next command is given.

    On a terminal that is too narrow for it each row becomes a block: its first cell, then a line for each other one.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    if sum(widths) + len(widths) - 1 > out.width:
        for first, *others in cells:
            out.print(Text(first, style="bold"), soft_wrap=True)
            for heading, cell in zip(headings[1:], others, strict=True):
                if cell:
                    out.print(Text(f"  {heading}: ", style="dim").append(cell, style="not dim"), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading in numbers else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    out.print(table)


def print_runs(found: Sequence[RunStatus]) -> None:
    """Print a table of runs; their names are never cut, since the next command needs them."""
    children = any(status.spec.parent for status in found)
    rows = []
    for status in found:
        counts, spec = status.counts, status.spec
        of = f"{counts.accepted * spec.repeat:,}+" if status.expected is None else f"{status.expected:,}"
        parent = [spec.parent or "–"] if children else []
        numbers = (f"{counts.settled:,}", of, f"{counts.dead:,}")
        rows.append(
            (status.name, spec.guard, status.state.value, *parent, *numbers, f"{status.created_at:%Y-%m-%d %H:%M}")
        )
    parent = ["child of"] if children else []
    numbers = ("settled", "of", "dead")
    print_listing(("run", "guard", "state", *parent, *numbers, "created (UTC)"), rows, numbers=numbers)


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


def print_item(where: str, item: Item) -> None:
    """Print an item as it would be judged: its kind, texts and truth."""
    facts = [item.kind.value, f"label {item.truth or 'none'}"]
    facts += [f"{name} {value}" for name, value in (("source", item.source), ("category", item.category)) if value]
    head = Text(printable(f"{item.id} · {' · '.join(facts)}"), style="bold")
    out.print(head.append(f"  {where}", style="not bold dim"))
    alone = "text" if item.kind is Kind.TEXT else "response"
    turns = [(turn.role, turn.content) for turn in item.history]
    for name, text in (*turns, ("prompt", item.question), (alone, item.response)):
        if text:
            more = f" … ({len(text):,} characters)" if len(text) > _TEXT_SHOWN else ""
            out.print(Text(f"  {name}: {printable(text[:_TEXT_SHOWN])}{more}"))


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


def finish(found: Services, run_id: str, report_options: ReportOptions, *, shown: bool = True) -> None:
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
    if shown:
        print_report(stored, as_json=report_options.as_json, price_per_device_hour=price)
    _require_outcome(stored, report_options.fail_under)


def _require_outcome(report: RunReport, gates: Sequence[QualityGate]) -> None:
    """Let the command fail where its run did."""
    if report.state is RunState.CANCELLED:
        raise RunError(f"run {report.name} was cancelled")
    if report.counts.unparseable:
        require_readable(report.counts, {**report.unparseable_reasons, **report.dead_reasons}, report.spec)
    averages = average(report)
    for gate in gates:
        metric = averages.metric(gate.metric) if averages else None
        if metric is None or metric.value is None:
            raise RunError(f"{gate.metric} is undefined: {metric and metric.undefined}")
        if metric.value < gate.floor:
            raise RunError(f"{gate.metric} is {metric.value:.4f}, below {gate.floor:g}")
    if report.counts.dead:
        raise RunError(f"{report.counts.dead:,} items died; their reasons are in the report")


def require_readable(counts: RunCounts, reasons: Mapping[str, int], spec: RunSpec) -> None:
    """Let the command fail where no answer could be read: figures over nothing would pass for a result."""
    if counts.scored or not counts.settled:
        return
    why = "".join(f"\n  {count:,}: {reason}" for reason, count in list(reasons.items())[:_BAD_ROWS_SHOWN])
    asked = f" asked in the words of {spec.family}" if spec.family else ""
    raise RunError(
        f"none of {counts.settled:,} answers of {spec.guard}{asked} could be read:{why}\n"
        "  another family, if these are not its words: --family NAME; another way to the verdict: --mode"
    )


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
