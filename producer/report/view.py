"""A RunReport as JSON, and as rows and cells of a page. Knows no HTML; every number is one of the report's.

The benchmark's published table stands alongside a run's own numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

from infra.ledger.stats import Mistake
from infra.metrics.counts import COUNT_METRICS, Confusion
from infra.metrics.curves import THRESHOLDS
from schemas.runs import Cost, Metric, MetricGroup, RunReport
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
"""The beginning of the source of a run whose verdicts were read from files: its speed says nothing of a guard."""

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


class MistakeView(NamedTuple):
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
    """Tell whether the verdicts were read from files instead of being judged here."""
    return report.spec.source.startswith(IMPORTED)


def has_truth(report: RunReport) -> bool:
    """Tell whether any row has a human label."""
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
    rows = []
    for group in found:
        metric = group.metric("accuracy")
        scenario, _, name = group.name.partition("/")
        above = find_scenario(scenario)
        known = find_subcategory(name) if name else above
        bounds = metric.interval if metric else None
        rows.append(
            Slice(
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
        )
    return rows


def confusions(report: RunReport) -> list[Counted]:
    """The counts of every source with human labels, and of all together where there are several."""
    groups = [group for group in of_kind(report, "source") if size(group)]
    groups += of_kind(report, "all") if len(groups) > 1 else []
    rows = []
    for group in groups:
        name = "All sources" if group.kind == "all" else group.name or "(no source)"
        unscored = int((group.value("unparseable") or 0) + (group.value("dead") or 0))
        rows.append(Counted(name, Confusion(*(int(group.value(name) or 0) for name in Confusion._fields)), unscored))
    return rows


def ranked(reports: Sequence[RunReport]) -> list[Ranked]:
    """The published rows, best first, with these runs and the constant baseline where they stand among them."""
    rows = [
        Ranked(
            "published",
            row.model,
            tuple(map(figure, (row.accuracy, row.f1_safe, row.f1_unsafe, *row.by_source))),
            100 * row.accuracy,
        )
        for row in published().rows
    ]
    for report in reports:
        for kind, name in (("average", report.name), ("baseline", "constant unsafe")):
            for group in of_kind(report, kind):
                if (accuracy := group.value("accuracy")) is not None:
                    own = [source.value("accuracy") for source in of_kind(report, "source")]
                    sources = own if kind == "average" and len(own) == 3 else [None] * 3
                    averages = (accuracy, group.value("f1_safe"), group.value("f1_unsafe"))
                    rows.append(Ranked(kind, name, tuple(map(figure, (*averages, *sources))), 100 * accuracy))
    seen: dict[tuple[str, str], Ranked] = {}
    for row in sorted(rows, key=lambda row: (-round(row.width / 100, 4), row.kind != "published")):
        seen.setdefault((row.kind, row.name), row)
    return list(seen.values())


def figure(value: float | None, digits: int = 4) -> str:
    """A number with so many digits behind the point, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def thresholds(sweep: Sequence[Confusion]) -> list[tuple[str, ...]]:
    """Metrics at every tenth of p_unsafe."""
    return [
        (f"{threshold:.1f}", *(figure(COUNT_METRICS[name].formula(counts)) for name, _ in SWEPT))
        for threshold, counts in zip(THRESHOLDS, sweep, strict=False)
        if round(100 * threshold) % 10 == 0 and 0 < threshold < 1
    ]


def listed(mistakes: Iterable[Mistake], *, with_text: bool) -> list[MistakeView]:
    """Mistakes as they are listed: long texts cut, and from `_TEXT_BYTES` on none at all."""
    left, rows = _TEXT_BYTES, []
    for mistake in mistakes:
        if not (with_text and mistake.response):
            rows.append(MistakeView(mistake, None))
            continue
        parts = (
            ("Question", mistake.question, _QUESTION_CHARS),
            ("Response", mistake.response, _RESPONSE_CHARS),
            ("What the guard wrote", mistake.raw or "", _RESPONSE_CHARS),
        )
        texts = tuple((title, cut(text, chars)) for title, text, chars in parts if text)
        left -= sum(len(text.encode()) for _, text in texts)
        rows.append(MistakeView(mistake, texts if left >= 0 else None))
    return rows


def cut(text: str, chars: int) -> str:
    """The beginning of a text, with a mark where something is left out."""
    return text if len(text) <= chars else f"{text[:chars]}…"


def printable(text: str) -> str:
    """A text from data without control characters: it cannot colour or steer the reader's terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


_FILE: Final = Path(__file__).with_name("published.yaml")
_NAMES: Final = {"Safety-Prompts": "Real Data", "synthesis": "Synthetic Data", "BeaverTails_30k": "Translated Data"}
"""The sources' names of the benchmark's first era → those of the later one."""


class PublishedRow(BaseModel):
    """A model's published averages; F1 is absent where none was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    accuracy: float
    real: float
    synthetic: float
    translated: float
    f1_safe: float | None = None
    f1_unsafe: float | None = None

    @property
    def by_source(self) -> tuple[float, float, float]:
        """Accuracy on each of the benchmark's sources."""
        return self.real, self.synthetic, self.translated


class Published(BaseModel):
    """The table, where it is from, and how many items each source of the benchmark has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    items: dict[str, int]
    rows: tuple[PublishedRow, ...]


@cache
def published() -> Published:
    """The table as it is shipped."""
    return Published.model_validate(yaml.safe_load(_FILE.read_text(encoding="utf-8")))


def is_the_benchmark(report: RunReport) -> bool:
    """Tell whether a run was over the whole benchmark, as far as names and sizes of its sources tell."""
    sources = ((group.name, group.metric("accuracy")) for group in of_kind(report, "source"))
    return {_NAMES.get(name, name): metric.n for name, metric in sources if metric} == published().items


def to_json(report: RunReport, *, price_per_device_hour: float | None = None) -> str:
    """The whole report, indented, Chinese as it is; equal reports give equal text. With a price, cost is money too.

    `RunReport.model_validate_json` reads it back.
    """
    content = report.model_dump(mode="json")
    for unordered in {"fingerprint", "dead_reasons", "unparseable_reasons"} & content.keys():
        content[unordered] = dict(sorted(content[unordered].items()))
    if report.cost is not None:
        content["cost"] = cost_facts(report.cost, price_per_device_hour)
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def cost_facts(cost: Cost, price: float | None) -> dict[str, Any]:
    """A cost as JSON has it, per 1,000 verdicts too; money only where there is a price per device hour."""
    facts: dict[str, Any] = cost.model_dump(mode="json")
    amounts = {"device_s": cost.device_s, "prompt_tokens": cost.prompt_tokens, "new_tokens": cost.new_tokens}
    if price is not None:
        facts["price_per_device_hour"] = price
        facts["money"] = amounts["money"] = cost.money(price)
    facts["per_1000_verdicts"] = {name: cost.per_1000(amount) for name, amount in amounts.items()}
    return facts


def amount_text(value: float) -> str:
    """Three figures that count, and no exponent."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"
