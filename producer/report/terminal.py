"""A RunReport on a terminal: the run, the benchmark's table, losses and speed.

Everything from data is put into `Text`, never into markup, and control characters are replaced: a source
named by somebody else cannot colour or steer the reader's terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from producer.report.view import (
    HEADLINE,
    Footnotes,
    amount_text,
    cell,
    has_truth,
    is_imported,
    of_kind,
    printable,
    size,
)
from schemas.items import PLAIN_KINDS
from schemas.runs import CascadeShares, MetricGroup, RunReport, RunState

WIDE: Final = 116
"""From this many columns an interval stands next to its value, below that under it."""
ENDLESS: Final = 10_000
"""Columns of what is no terminal: nothing is cut there, and a report is laid out as for 80."""

MAX_ROWS: Final = 20
MAX_NAME: Final = 32
MAX_INVALID: Final = 5
MAX_REASONS: Final = 10

_HEADLINE: Final = tuple((name, title.replace("Balanced", "Bal.")) for name, title in HEADLINE)
_SCENARIO: Final = _HEADLINE[:3]
_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_STATE_STYLES: Final = {RunState.COMPLETE: "green", RunState.CANCELLED: "red"}
_RULES: Final = {"libra-head": "libra-head: unparseable and dead count as wrong"}
_GAP: Final = " · "


def render(report: RunReport, console: Console, *, price_per_device_hour: float | None = None) -> None:
    """Print a report, as wide as the console allows; made for 80 columns and more. With a price, cost is money too."""
    for part in _parts(report, wide=WIDE <= console.width < ENDLESS):
        console.print(part)
    if (cost := report.cost) is not None:
        facts = [f"{cost.device_s:,.1f} device-seconds", f"{cost.prompt_tokens:,} tokens read"]
        if cost.new_tokens:
            facts.append(f"{cost.new_tokens:,} written")
        if (per_1000 := cost.per_1000(cost.device_s)) is not None:
            facts.append(f"{amount_text(per_1000)} s per 1,000 verdicts")
        price = price_per_device_hour
        if price is not None and (money := cost.per_1000(cost.money(price))) is not None:
            facts.append(f"{amount_text(money)} per 1,000 at {price:g} an hour")
        if cost.measured < cost.verdicts:
            facts.append(f"measured on {cost.measured:,} of {cost.verdicts:,}")
        console.print(Text(f"cost: {_GAP.join(facts)}"))


def _parts(report: RunReport, *, wide: bool) -> Iterator[Text | Table]:
    title = Text(printable(report.name or report.run_id), style="bold")
    title.append(f"{_GAP}{printable(report.spec.guard)}{_GAP}{report.spec.mode}{_GAP}", style="not bold")
    title.append(str(report.state), style=_STATE_STYLES.get(report.state, "yellow"))
    yield title
    mark = report.fingerprint
    run = [
        "" if report.name == report.run_id else f"run {report.run_id}",
        f"fingerprint {mark['digest']}" if "digest" in mark else "",
    ]
    model = ["@".join(filter(None, (mark.get("model"), mark.get("revision"))))]
    model += [mark.get(name, "") for name in ("adapter", "dtype", "engine")]
    for named in filter(any, (run, model)):
        yield Text(_GAP.join(printable(fact) for fact in named if fact), style="dim")
    yield Text()
    if report.without_groups:
        yield Text(f"no metrics: {printable(report.without_groups)}", style="yellow")
    elif has_truth(report):
        yield from _labelled(report, wide=wide)
    else:
        yield _verdicts(report)
        yield Text()
    yield _counts(report)
    yield from _kinds(report)
    if report.cascade:
        yield from _cascade(report.cascade)
    yield from _reasons(report)
    if report.throughput and not is_imported(report):
        pace = report.throughput
        rate = pace.items_per_s
        facts = [] if rate is None else [f"{rate:,.{0 if rate >= 1000 else 1}f} items/s"]
        facts.append(f"{pace.seconds:,.1f} s")
        stages = (("queue", pace.queue_p50_s, pace.queue_p95_s), ("device", pace.device_p50_s, pace.device_p95_s))
        known = [
            f"{name} {_seconds(p50)}/{_seconds(p95)}"
            for name, p50, p95 in stages
            if p50 is not None and p95 is not None
        ]
        yield Text(_GAP.join(facts + known) + (" (p50/p95)" if known else ""))
    yield from _invalid(report)


def _reasons(report: RunReport) -> Iterator[Text]:
    """Why items died, and why answers could not be read, the most frequent reasons first."""
    for word, reasons in (("dead", report.dead_reasons), ("unparseable", report.unparseable_reasons)):
        for reason, count in sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_REASONS]:
            yield Text(f"  {count:,} {word}: {printable(reason)}", style="red")


def _invalid(report: RunReport) -> Iterator[Text]:
    """The rows that were skipped, the first of them with their places."""
    if report.invalid_count:
        yield Text(f"{report.invalid_count:,} invalid rows skipped", style="yellow")
        for row in report.invalid_rows[:MAX_INVALID]:
            yield Text(f"  {printable(row.where)}: {printable(row.problem)}")
        more = report.invalid_count - min(len(report.invalid_rows), MAX_INVALID)
        yield from [Text(f"  … and {more:,} more", style="dim")] if more > 0 else []


def _kinds(report: RunReport) -> Iterator[Text]:
    """How many items are of which kind, where some are more than texts and pairs."""
    if not PLAIN_KINDS.issuperset(report.kinds):
        yield Text(f"kinds: {_GAP.join(f'{count:,} {kind}' for kind, count in report.kinds.items())}")


def _table(first: str, *others: str, justify: JustifyMethod = "right") -> Table:
    """Only the first column gives way on a narrow terminal: a number is never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")
    table.border_style = "dim"
    table.add_column(first, overflow="fold", max_width=MAX_NAME)
    table.add_column("n", justify="right", no_wrap=True)
    for header in others:
        table.add_column(header, justify=justify, no_wrap=True)
    return table


def _labelled(report: RunReport, *, wide: bool) -> Iterator[Text | Table]:
    """The benchmark's table, that of scenarios, and the footnotes of both."""
    notes = Footnotes()
    table = _table("Source", *(title for _, title in _HEADLINE), justify="left" if wide else "right")
    sources = of_kind(report, "source")
    for source in sources[:MAX_ROWS]:
        table.add_row(*_metric_row(printable(source.name) or "(no source)", source, _HEADLINE, notes, wide=wide))
    _say_more(table, len(sources) - MAX_ROWS, "sources")
    table.add_section()
    for group in of_kind(report, "average"):
        table.add_row(*_metric_row("Average", group, _HEADLINE, notes, wide=wide), style="bold")
    for group in [*of_kind(report, "loose"), *of_kind(report, "baseline")]:
        table.add_row(*_metric_row(printable(group.name), group, _HEADLINE, notes, wide=wide), style="dim")
    yield table
    scenarios = sorted(of_kind(report, "category"), key=lambda group: -size(group))
    if scenarios:
        yield Text()
        table = _table("Scenario", *(title for _, title in _SCENARIO), justify="left")
        for scenario in scenarios[:MAX_ROWS]:
            table.add_row(*_metric_row(printable(scenario.name), scenario, _SCENARIO, notes, wide=True))
        _say_more(table, len(scenarios) - MAX_ROWS, "scenarios")
        yield table
    yield Text()
    for reason, number in notes.reasons.items():
        yield Text(f"{str(number).translate(_SUPERSCRIPTS)} {printable(reason)}", style="dim")
    yield Text(f"{_RULES.get(report.rule, report.rule)}; intervals at 95 %", style="dim")


def _say_more(table: Table, count: int, what: str) -> None:
    if count > 0:
        table.add_row(Text(f"… and {count:,} more {what}", style="dim"))


def _metric_row(
    name: str, group: MetricGroup, columns: Iterable[tuple[str, str]], notes: Footnotes, *, wide: bool
) -> list[Text]:
    cells = [Text(name), Text(f"{size(group):,}")]
    for column, _ in columns:
        value, interval, note = cell(group.metric(column), notes)
        text = Text(value) if note is None else Text(f"{value}{str(note).translate(_SUPERSCRIPTS)}", style="dim")
        if interval:
            text.append(f"{' ' if wide else chr(10)}{interval}", style="dim not bold")
        cells.append(text)
    return cells


def _verdicts(report: RunReport) -> Table:
    """Without human labels nothing can be right: show the verdicts."""
    columns = (("verdict_unsafe", "unsafe"), ("verdict_safe", "safe"), ("unparseable", "unparseable"), ("dead", "dead"))
    table = _table("Source", *(title for _, title in columns))
    sources = of_kind(report, "source")
    for group in sources[:MAX_ROWS]:
        table.add_row(printable(group.name) or "(no source)", *_verdict_cells(group, columns))
    _say_more(table, len(sources) - MAX_ROWS, "sources")
    table.add_section()
    for group in of_kind(report, "all"):
        table.add_row("All", *_verdict_cells(group, columns), style="bold")
    return table


def _verdict_cells(group: MetricGroup, columns: Iterable[tuple[str, str]]) -> list[Text]:
    coverage = group.metric("coverage")
    rows = coverage.n if coverage else 0
    cells = [Text(f"{rows:,}")]
    for column, _ in columns:
        count = group.value(column) or 0
        counted = Text(f"{count:,.0f}")
        counted.append(f" {count / rows:6.1%}" if count else " " * 7, style="dim not bold")
        cells.append(counted)
    return cells


def _counts(report: RunReport) -> Text:
    counts = report.counts
    line = Text(f"{counts.accepted:,} accepted")
    if report.spec.repeat > 1:
        line.append(f" × {report.spec.repeat}")
    line.append(f"{_GAP}{counts.scored:,} scored")
    for count, name in ((counts.unparseable, "unparseable"), (counts.dead, "dead")):
        line.append(_GAP)
        line.append(f"{count:,} {name}", style="red" if count else "")
    if report.cached:
        line.append(f"{_GAP}{report.cached:,} from the cache", style="yellow")
    if counts.pending:
        line.append(_GAP)
        line.append(f"{counts.pending:,} pending", style="yellow")
    return line


def _cascade(cascade: CascadeShares) -> Iterator[Table | Text]:
    """Each stage's share, and what that saved; its cost is known from a run of one guard alone."""
    table = _table("Stage", "settled", "unparseable", "dead", "device", justify="right")
    items = cascade.stages[0].judged
    for stage in cascade.stages:
        settled = f"{stage.settled:,}" + (f" {stage.settled / items:6.1%}" if items else "")
        numbers = (f"{stage.judged:,}", settled, f"{stage.unparseable:,}", f"{stage.dead:,}", _seconds(stage.device_s))
        table.add_row(printable(stage.guard), *numbers)
    yield table
    if cascade.device_s_saved is not None:
        saved, last = cascade.device_s_saved, printable(cascade.stages[-1].guard)
        word = "saved" if saved >= 0 else "lost"
        yield Text(f"{_seconds(abs(saved))} of device time {word} by calculation, compared with {last} alone")
    if (against := cascade.against) is not None:
        used = sum(stage.device_s for stage in cascade.stages)
        yield Text(
            f"compared with run {against.run_id} of {printable(against.guard)}, {against.items:,} items: "
            f"{against.agreement:.2%} end alike{_GAP}device {_seconds(used)}, not {_seconds(against.device_s)}"
        )
        if against.accuracy is not None and against.cascade_accuracy is not None and against.accuracy_lost is not None:
            low, high = against.accuracy_lost.low, against.accuracy_lost.high
            yield Text(
                f"accuracy {against.cascade_accuracy:.4f}, not {against.accuracy:.4f}: "
                f"{against.accuracy - against.cascade_accuracy:+.4f} lost ({low:+.4f} to {high:+.4f})"
            )


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"
