"""A RunReport as rows and cells of a page. Knows no HTML; every number is one of the report's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from infra.ledger.stats import Mistake
from infra.metrics.counts import COUNT_METRICS, Confusion
from infra.metrics.curves import THRESHOLDS
from producer.report.published import PublishedRow, published
from schemas.runs import Metric, MetricGroup, RunReport
from schemas.taxonomy import find_scenario, find_subcategory

HEADLINE: Final = (
    ("accuracy", "Accuracy"),
    ("f1_safe", "F1-safe"),
    ("f1_unsafe", "F1-unsafe"),
    ("balanced_accuracy", "Balanced acc."),
    ("auroc", "AUROC"),
    ("coverage", "Coverage"),
)
IMPORTED: Final = "import:"
"""How the source of a run begins whose verdicts were read from files: its speed says nothing of a guard."""

SLICED: Final = ("f1_safe", "f1_unsafe")
SWEPT: Final = HEADLINE[:4]
"""Metrics that are shown over the threshold."""

_QUESTION_CHARS, _RESPONSE_CHARS = 200, 400
_TEXT_BYTES: Final = 900_000
"""Of all texts in a page together, so that it stays a file that one can send."""


class Footnotes:
    """Reasons of undefined metrics, numbered in the order they are met, each once."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def mark(self, metric: Metric) -> int:
        """The number of the reason why this metric has no value."""
        return self.reasons.setdefault(metric.undefined or "not reported", len(self.reasons) + 1)


class Cell(NamedTuple):
    """A value with its interval; without a value, a note says why."""

    value: str
    interval: str = ""
    note: int | None = None


class Row(NamedTuple):
    """A row of the headline table; `kind` is its group's."""

    kind: str
    name: str
    n: int
    cells: tuple[Cell, ...]


class Slice(NamedTuple):
    """A scenario, or a sub-category of `scenario`: accuracy with its interval in percent of the bar, and its F1."""

    scenario: str
    scenario_english: str
    name: str
    english: str
    n: int
    accuracy: Cell
    width: float
    low: float | None
    high: float | None
    f1: tuple[Cell, ...]


class Ranked(NamedTuple):
    """A row of the published table, or this run or the baseline among them."""

    kind: str
    name: str
    cells: tuple[str, ...]
    width: float


class Counted(NamedTuple):
    """The four counts of a source, and those without a label among them."""

    name: str
    counts: Confusion
    unscored: int

    def share(self, count: int) -> int:
        """Percent of the rows of the same truth."""
        tp, fn, fp, tn = self.counts
        whole = tp + fn if count in (tp, fn) and tp + fn else fp + tn
        return round(100 * count / whole) if whole else 0


@dataclass(frozen=True)
class MistakeView:
    """A mistake as it is listed; `texts` are cut, and None where they are not shown."""

    mistake: Mistake
    texts: tuple[tuple[str, str], ...] | None


def of_kind(report: RunReport, kind: str) -> list[MetricGroup]:
    """The groups of a kind, in the report's order."""
    return [group for group in report.groups if group.kind == kind]


def average(report: RunReport) -> MetricGroup | None:
    """The average over sources."""
    return next(iter(of_kind(report, "average")), None)


def is_imported(report: RunReport) -> bool:
    """Whether the verdicts were read from files instead of being judged here."""
    return report.spec.source.startswith(IMPORTED)


def has_truth(report: RunReport) -> bool:
    """Whether any row has a human label."""
    metrics = (group.metric("accuracy") for group in report.groups)
    return any(metric.n > 0 for metric in metrics if metric)


def cell(metric: Metric | None, notes: Footnotes) -> Cell:
    """A metric as a cell."""
    if metric is None:
        return Cell("")
    if metric.value is None:
        return Cell("–", note=notes.mark(metric))
    bounds = metric.interval
    return Cell(f"{metric.value:.4f}", f"{short(bounds.low)}–{short(bounds.high)}" if bounds else "")


def short(bound: float) -> str:
    """A bound of an interval within [0, 1]."""
    return "1" if bound > 0.9995 else f"{bound:.3f}".removeprefix("0")


def headline(report: RunReport, notes: Footnotes) -> list[Row]:
    """Sources, their average, the loose reading where there is one, and the constant baseline."""
    rows = []
    for kind in ("source", "average", "loose", "baseline"):
        for group in of_kind(report, kind):
            cells = tuple(cell(group.metric(name), notes) for name, _ in HEADLINE)
            rows.append(Row(kind, group.name or "(no source)", size(group), cells))
    return rows


def size(group: MetricGroup) -> int:
    """Rows with a human label."""
    metric = group.metric("accuracy")
    return metric.n if metric else 0


def slices(report: RunReport, kind: str, notes: Footnotes) -> list[Slice]:
    """Scenarios, largest first; sub-categories by scenario, and in it largest first."""
    order = {
        group.name: place for place, group in enumerate(sorted(of_kind(report, "category"), key=lambda g: -size(g)))
    }
    found = [group for group in of_kind(report, kind) if size(group)]
    found.sort(
        key=lambda g: (order.get(g.name.partition("/")[0], len(order)) if kind == "subcategory" else 0, -size(g))
    )
    return [_slice(group, notes) for group in found]


def _slice(group: MetricGroup, notes: Footnotes) -> Slice:
    metric = group.metric("accuracy")
    scenario, _, name = group.name.partition("/")
    above = find_scenario(scenario)
    known = find_subcategory(name) if name else above
    bounds = metric.interval if metric else None
    return Slice(
        scenario=scenario if name else "",
        scenario_english=above.name if name and above and above.name != scenario else "",
        name=name or scenario,
        english=known.name if known and known.name != (name or scenario) else "",
        n=size(group),
        accuracy=cell(metric, notes),
        width=100 * (metric.value or 0) if metric else 0,
        low=100 * bounds.low if bounds else None,
        high=100 * bounds.high if bounds else None,
        f1=tuple(cell(group.metric(f1), notes) for f1 in SLICED),
    )


def confusions(report: RunReport) -> list[Counted]:
    """The counts of every source with human labels, and of all together where there are several."""
    groups = [group for group in of_kind(report, "source") if size(group)]
    groups += of_kind(report, "all") if len(groups) > 1 else []
    return [_counted(group) for group in groups]


def _counted(group: MetricGroup) -> Counted:
    counts = Confusion(*(int(group.value(name) or 0) for name in Confusion._fields))
    unscored = int((group.value("unparseable") or 0) + (group.value("dead") or 0))
    name = "All sources" if group.kind == "all" else group.name or "(no source)"
    return Counted(name, counts, unscored)


def ranked(reports: Sequence[RunReport]) -> list[Ranked]:
    """The published rows, best first, with these runs and the constant baseline where they stand among them."""
    rows = [
        (row.accuracy, Ranked("published", row.model, _published_cells(row), 100 * row.accuracy))
        for row in published().rows
    ]
    for report in reports:
        for kind, name in (("average", report.name), ("baseline", "constant unsafe")):
            for group in of_kind(report, kind):
                accuracy = group.value("accuracy")
                if accuracy is not None:
                    rows.append((accuracy, Ranked(kind, name, _own_cells(report, group), 100 * accuracy)))
    seen: dict[tuple[str, str], Ranked] = {}
    for _, row in sorted(rows, key=lambda found: (-round(found[0], 4), found[1].kind != "published")):
        seen.setdefault((row.kind, row.name), row)
    return list(seen.values())


def _published_cells(row: PublishedRow) -> tuple[str, ...]:
    values = (row.accuracy, row.f1_safe, row.f1_unsafe, row.real, row.synthetic, row.translated)
    return tuple("–" if value is None else f"{value:.4f}" for value in values)


def _own_cells(report: RunReport, group: MetricGroup) -> tuple[str, ...]:
    averages = [group.value(name) for name in ("accuracy", "f1_safe", "f1_unsafe")]
    sources = of_kind(report, "source")
    own = [source.value("accuracy") for source in sources] if group.kind == "average" else []
    values = [*averages, *(own if len(own) == 3 else [None] * 3)]
    return tuple("–" if value is None else f"{value:.4f}" for value in values)


def thresholds(sweep: Sequence[Confusion]) -> list[tuple[str, ...]]:
    """Metrics at every tenth of p_unsafe."""
    rows = []
    for threshold, counts in zip(THRESHOLDS, sweep, strict=False):
        if round(100 * threshold) % 10 == 0 and 0 < threshold < 1:
            values = [COUNT_METRICS[name].formula(counts) for name, _ in SWEPT]
            rows.append((f"{threshold:.1f}", *("–" if value is None else f"{value:.4f}" for value in values)))
    return rows


def told(mistakes: Iterable[Mistake], *, with_text: bool) -> list[MistakeView]:
    """Mistakes as they are listed: long texts cut, and from `_TEXT_BYTES` on none at all."""
    left, rows = _TEXT_BYTES, []
    for mistake in mistakes:
        texts = _texts(mistake) if with_text and mistake.response else None
        if texts:
            left -= sum(len(text.encode()) for _, text in texts)
        rows.append(MistakeView(mistake, texts if left >= 0 else None))
    return rows


def _texts(mistake: Mistake) -> tuple[tuple[str, str], ...]:
    parts = (
        ("Question", mistake.question, _QUESTION_CHARS),
        ("Response", mistake.response, _RESPONSE_CHARS),
        ("What the guard wrote", mistake.raw or "", _RESPONSE_CHARS),
    )
    return tuple((title, cut(text, chars)) for title, text, chars in parts if text)


def cut(text: str, chars: int) -> str:
    """The beginning of a text, with a mark where something is left out."""
    return text if len(text) <= chars else f"{text[:chars]}…"


def printable(text: str) -> str:
    """A text from data without control characters: it cannot colour or steer the reader's terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
