"""A RunReport on a terminal: what ran, the benchmark's table, what was lost, how fast.

Everything from data is put into `Text`, never into markup, and control characters are replaced: a source
named by somebody else cannot colour or steer the reader's terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from producer.report.cost import cost_line
from producer.report.view import is_imported
from schemas.runs import CascadeShares, InvalidRow, Metric, MetricGroup, RunReport, RunState, Throughput

WIDE: Final = 116
"""From this many columns an interval stands beside its value, below that under it."""

MAX_ROWS: Final = 20
MAX_NAME: Final = 32
MAX_INVALID: Final = 5

_HEADLINE: Final = (
    ("accuracy", "Accuracy"),
    ("f1_safe", "F1-safe"),
    ("f1_unsafe", "F1-unsafe"),
    ("balanced_accuracy", "Bal. acc."),
    ("auroc", "AUROC"),
    ("coverage", "Coverage"),
)
_SCENARIO: Final = _HEADLINE[:3]
_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_STATE_STYLES: Final = {RunState.COMPLETE: "green", RunState.CANCELLED: "red"}
_RULES: Final = {"libra-head": "libra-head: unparseable and dead count as wrong"}
_GAP: Final = " · "


def render(report: RunReport, console: Console, *, price_per_device_hour: float | None = None) -> None:
    """Print a report, as wide as the console allows; made for 80 columns and more. With a price, cost is money too."""
    for part in _parts(report, wide=console.width >= WIDE):
        console.print(part)
    if report.cost is not None:
        console.print(cost_line(report.cost, price_per_device_hour))


def _parts(report: RunReport, *, wide: bool) -> Iterator[Text | Table]:
    yield from _heading(report)
    yield Text()
    if _has_truth(report.groups):
        notes = _Footnotes()
        yield _headline(report.groups, notes, wide=wide)
        scenarios = _of_kind(report.groups, "category")
        if scenarios:
            yield Text()
            yield _scenarios(scenarios, notes)
        yield Text()
        yield from notes.lines()
        yield Text(f"{_RULES.get(report.rule, report.rule)}; intervals at 95 %", style="dim")
    else:
        yield _verdict_mix(report.groups)
        yield Text()
    yield _counts(report)
    if report.cascade:
        yield from _cascade(report.cascade)
    yield from _losses(report)
    if report.throughput and not is_imported(report):
        yield _throughput(report.throughput)
    if report.invalid_count:
        yield from _invalid(report.invalid_rows, report.invalid_count)


class _Footnotes:
    """Reasons of undefined metrics, numbered in the order they are met, each once."""

    def __init__(self) -> None:
        self._reasons: dict[str, int] = {}

    def mark(self, metric: Metric) -> str:
        reason = metric.undefined or "not reported"
        number = self._reasons.setdefault(reason, len(self._reasons) + 1)
        return str(number).translate(_SUPERSCRIPTS)

    def lines(self) -> list[Text]:
        return [
            Text(f"{str(number).translate(_SUPERSCRIPTS)} {_clean(reason)}", style="dim")
            for reason, number in self._reasons.items()
        ]


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _of_kind(groups: Iterable[MetricGroup], kind: str) -> list[MetricGroup]:
    return [group for group in groups if group.kind == kind]


def _has_truth(groups: Sequence[MetricGroup]) -> bool:
    metrics = (group.metric("accuracy") for group in groups)
    return any(metric.n > 0 for metric in metrics if metric)


def _heading(report: RunReport) -> Iterator[Text]:
    """What ran, and what exactly judged it."""
    title = Text(_clean(report.name or report.run_id), style="bold")
    title.append(f"{_GAP}{_clean(report.spec.guard)}{_GAP}{report.spec.mode}{_GAP}", style="not bold")
    title.append(str(report.state), style=_STATE_STYLES.get(report.state, "yellow"))
    yield title
    mark = report.fingerprint
    run = [
        "" if report.name == report.run_id else f"run {report.run_id}",
        f"fingerprint {mark['digest']}" if "digest" in mark else "",
    ]
    model = ["@".join(filter(None, (mark.get("model"), mark.get("revision"))))]
    model += [mark.get(name, "") for name in ("adapter", "dtype", "engine")]
    for facts in (run, model):
        if any(facts):
            yield Text(_GAP.join(_clean(fact) for fact in facts if fact), style="dim")


def _table(first: str, *others: str, justify: JustifyMethod = "right") -> Table:
    """Only the first column gives way on a narrow terminal: a number is never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")
    table.border_style = "dim"
    table.add_column(first, overflow="fold", max_width=MAX_NAME)
    table.add_column("n", justify="right", no_wrap=True)
    for header in others:
        table.add_column(header, justify=justify, no_wrap=True)
    return table


def _headline(groups: Sequence[MetricGroup], notes: _Footnotes, *, wide: bool) -> Table:
    table = _table("Source", *(title for _, title in _HEADLINE), justify="left" if wide else "right")
    sources = _of_kind(groups, "source")
    for source in sources[:MAX_ROWS]:
        table.add_row(*_metric_row(_name(source, "no source"), source, _HEADLINE, notes, wide=wide))
    _say_more(table, len(sources) - MAX_ROWS, "sources")
    table.add_section()
    for group in _of_kind(groups, "average"):
        table.add_row(*_metric_row("Average", group, _HEADLINE, notes, wide=wide), style="bold")
    for group in [*_of_kind(groups, "loose"), *_of_kind(groups, "baseline")]:
        table.add_row(*_metric_row(_clean(group.name), group, _HEADLINE, notes, wide=wide), style="dim")
    return table


def _scenarios(scenarios: Sequence[MetricGroup], notes: _Footnotes) -> Table:
    table = _table("Scenario", *(title for _, title in _SCENARIO), justify="left")
    largest_first = sorted(scenarios, key=lambda group: -_rows(group))
    for scenario in largest_first[:MAX_ROWS]:
        table.add_row(*_metric_row(_clean(scenario.name), scenario, _SCENARIO, notes, wide=True))
    _say_more(table, len(scenarios) - MAX_ROWS, "scenarios")
    return table


def _say_more(table: Table, count: int, what: str) -> None:
    if count > 0:
        table.add_row(Text(f"… and {count:,} more {what}", style="dim"))


def _name(group: MetricGroup, nameless: str) -> str:
    return _clean(group.name) or f"({nameless})"


def _rows(group: MetricGroup) -> int:
    metric = group.metric("accuracy")
    return metric.n if metric else 0


def _metric_row(
    name: str, group: MetricGroup, columns: Iterable[tuple[str, str]], notes: _Footnotes, *, wide: bool
) -> list[Text]:
    cells = [Text(name), Text(f"{_rows(group):,}")]
    for column, _ in columns:
        metric = group.metric(column)
        cells.append(_metric_cell(metric, notes, wide=wide) if metric else Text())
    return cells


def _metric_cell(metric: Metric, notes: _Footnotes, *, wide: bool) -> Text:
    if metric.value is None:
        return Text(f"–{notes.mark(metric)}", style="dim")
    cell = Text(f"{metric.value:.4f}")
    if metric.interval:
        bounds = f"{_short(metric.interval.low)}–{_short(metric.interval.high)}"
        cell.append(f"{' ' if wide else chr(10)}{bounds}", style="dim not bold")
    return cell


def _short(bound: float) -> str:
    return "1" if bound > 0.9995 else f"{bound:.3f}".removeprefix("0")


def _verdict_mix(groups: Sequence[MetricGroup]) -> Table:
    """Without truth there is nothing to be right about: show what was said."""
    columns = (("verdict_unsafe", "unsafe"), ("verdict_safe", "safe"), ("unparseable", "unparseable"), ("dead", "dead"))
    table = _table("Source", *(title for _, title in columns))
    sources = _of_kind(groups, "source")
    for group in sources[:MAX_ROWS]:
        table.add_row(_name(group, "no source"), *_mix_cells(group, columns))
    _say_more(table, len(sources) - MAX_ROWS, "sources")
    table.add_section()
    for group in _of_kind(groups, "all"):
        table.add_row("All", *_mix_cells(group, columns), style="bold")
    return table


def _mix_cells(group: MetricGroup, columns: Iterable[tuple[str, str]]) -> list[Text]:
    coverage = group.metric("coverage")
    rows = coverage.n if coverage else 0
    cells = [Text(f"{rows:,}")]
    for column, _ in columns:
        count = group.value(column) or 0
        cell = Text(f"{count:,.0f}")
        cell.append(f" {count / rows:6.1%}" if count else " " * 7, style="dim not bold")
        cells.append(cell)
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
    """Who settled what, and what that saved; what it cost is known beside a run of one guard alone."""
    table = _table("Stage", "settled", "unparseable", "dead", "device", justify="right")
    items = cascade.stages[0].judged
    for stage in cascade.stages:
        settled = f"{stage.settled:,}" + (f" {stage.settled / items:6.1%}" if items else "")
        numbers = (f"{stage.judged:,}", settled, f"{stage.unparseable:,}", f"{stage.dead:,}", _seconds(stage.device_s))
        table.add_row(_clean(stage.guard), *numbers)
    yield table
    if cascade.device_s_saved is not None:
        saved, last = cascade.device_s_saved, _clean(cascade.stages[-1].guard)
        word = "saved" if saved >= 0 else "lost"
        yield Text(f"{_seconds(abs(saved))} of device time {word}, reckoned, against {last} alone")
    if (against := cascade.against) is not None:
        used = sum(stage.device_s for stage in cascade.stages)
        yield Text(
            f"beside run {against.run_id} of {_clean(against.guard)}, {against.items:,} items: "
            f"{against.agreement:.2%} end alike{_GAP}device {_seconds(used)}, not {_seconds(against.device_s)}"
        )
        if against.accuracy is not None and against.cascade_accuracy is not None and against.accuracy_lost is not None:
            low, high = against.accuracy_lost.low, against.accuracy_lost.high
            yield Text(
                f"accuracy {against.cascade_accuracy:.4f}, not {against.accuracy:.4f}: "
                f"{against.accuracy - against.cascade_accuracy:+.4f} lost ({low:+.4f} to {high:+.4f})"
            )


def _losses(report: RunReport) -> Iterable[Text]:
    for reason, count in sorted(report.dead_reasons.items(), key=lambda entry: (-entry[1], entry[0])):
        yield Text(f"  {count:,} dead: {_clean(reason)}", style="red")


def _throughput(throughput: Throughput) -> Text:
    rate = throughput.items_per_s
    facts = [] if rate is None else [f"{rate:,.{0 if rate >= 1000 else 1}f} items/s"]
    facts.append(f"{throughput.seconds:,.1f} s")
    stages = (
        ("queue", throughput.queue_p50_s, throughput.queue_p95_s),
        ("device", throughput.device_p50_s, throughput.device_p95_s),
    )
    known = [
        f"{name} {_seconds(p50)}/{_seconds(p95)}" for name, p50, p95 in stages if p50 is not None and p95 is not None
    ]
    return Text(_GAP.join(facts + known) + (" (p50/p95)" if known else ""))


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _invalid(rows: Sequence[InvalidRow], count: int) -> Iterable[Text]:
    yield Text(f"{count:,} invalid rows skipped", style="yellow")
    for row in rows[:MAX_INVALID]:
        yield Text(f"  {_clean(row.where)}: {_clean(row.problem)}")
    if count > min(len(rows), MAX_INVALID):
        yield Text(f"  … and {count - min(len(rows), MAX_INVALID):,} more", style="dim")
