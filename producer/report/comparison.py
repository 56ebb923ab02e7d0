"""Runs over the same items, each compared pair by pair with the first: figures and tables (terminal, Markdown, page).

Knows no ledger: what two runs settled comes in as a stream.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from infra.ledger.items import PairedVerdict
from infra.ledger.stats import Volume
from infra.metrics.paired import Cell, Difference, McNemar, differences, mcnemar
from producer.report.view import HEADLINE, average, figure, is_imported, printable, short
from schemas.runs import RunReport
from schemas.verdicts import Outcome

COMPARED: Final = ("accuracy", "f1_safe", "f1_unsafe", "balanced_accuracy")
EXAMPLES: Final = 100
PARITY_EXAMPLES: Final = 20


@dataclass
class SliceDisagreement:
    """Judgements of a slice: all that are compared, and those with a human label that one side alone got right."""

    compared: int = 0
    first_only: int = 0
    second_only: int = 0


@dataclass
class Comparison:
    """The verdicts of two runs on the same items.

    Compared are judgements of the same text that are dead in neither run; `other_text` and `dead` count what is left
    out. `test` and `differences` are over those with a human label, and absent without any.
    """

    compared: int = 0
    alike: int = 0
    labelled: int = 0
    other_text: int = 0
    dead: int = 0
    test: McNemar | None = None
    differences: tuple[Difference, ...] = ()
    by_source: defaultdict[str, SliceDisagreement] = field(default_factory=lambda: defaultdict(SliceDisagreement))
    by_category: defaultdict[str, SliceDisagreement] = field(default_factory=lambda: defaultdict(SliceDisagreement))
    examples: list[PairedVerdict] = field(default_factory=list)
    """Items whose labels differ, the widest gap between the scores first."""

    @classmethod
    def of(cls, rows: Iterable[PairedVerdict], *, seed: int = 0) -> Comparison:
        """Compare what both runs settled, in memory that does not grow with their number."""
        found = cls()
        pairs: dict[str, Counter[Cell]] = defaultdict(Counter)
        widest: list[tuple[float, int, int, PairedVerdict]] = []
        for number, row in enumerate(rows):
            if Outcome.DEAD in row.outcomes:
                found.dead += 1
            elif not row.same_text:
                found.other_text += 1
            else:
                found._count(row)
                first, second = row.labels
                if row.truth is not None:  # no label is a wrong one, by the benchmark's rule
                    pairs[row.source][Cell(row.truth, first == row.truth, second == row.truth)] += 1
                if first != second:
                    low, high = row.scores  # a side without a score is as far as can be
                    gap = 1.0 if low is None or high is None else abs(low - high)
                    entry = (gap, -row.seq, -number, row)
                    (heapq.heappush if len(widest) < EXAMPLES else heapq.heappushpop)(widest, entry)
        found.examples = [row for *_, row in sorted(widest, key=lambda entry: entry[:3], reverse=True)]
        if pairs:
            found.test = mcnemar(pairs)
            found.differences = differences(pairs, COMPARED, seed=seed)
        return found

    def _count(self, row: PairedVerdict) -> None:
        first, second = row.labels
        self.compared += 1
        self.alike += first == second
        self.labelled += row.truth is not None
        slices = [self.by_source[row.source], *([self.by_category[row.category]] if row.category else [])]
        for part in slices:
            part.compared += 1
            if row.truth is not None and first != second:
                part.first_only += first == row.truth
                part.second_only += second == row.truth


@dataclass
class Parity:
    """The ends of the runs of a guard's two modes, deaths included. `cells` counts items by (first, second) end."""

    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    examples: list[PairedVerdict] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[PairedVerdict]) -> Parity:
        """Count pairs; the first disagreements by id are kept as examples."""
        parity = cls()

        def differing() -> Iterable[PairedVerdict]:
            for row in rows:
                ends = ends_of(row)
                parity.cells[ends] += 1
                if ends[0] != ends[1]:
                    parity.by_source[row.source] += 1
                    yield row

        parity.examples = heapq.nsmallest(PARITY_EXAMPLES, differing(), key=lambda row: row.item_id)
        return parity

    @property
    def items(self) -> int:
        """Items that both runs have."""
        return self.cells.total()

    @property
    def agreement(self) -> float:
        """Share of the items that ended alike: both safe, both unsafe, both unparseable. Two deaths say nothing."""
        alike = sum(count for (first, second), count in self.cells.items() if first == second != "dead")
        return alike / self.items if self.items else 0.0


def ends_of(row: PairedVerdict) -> tuple[str, str]:
    """The end of a judgement in either run: its label, or its outcome where it has none."""
    first, second = ((label or outcome).value for label, outcome in zip(row.labels, row.outcomes, strict=True))
    return first, second


COLUMNS: Final = (
    *("Accuracy", "95 %", "F1-safe", "F1-unsafe", "AUROC", "Coverage"),
    *("items/s", "device-s/1,000", "tokens/item"),
)

COST_COLUMNS: Final = 3
"""The last ones: speed and cost."""

_TITLES: Final = dict(HEADLINE)


@dataclass(frozen=True)
class Ranking:
    """A run on the leaderboard: its report, and what it took."""

    report: RunReport
    volume: Volume

    @property
    def accuracy(self) -> float:
        """The value that the leaderboard is sorted by; a run without one is last."""
        group = average(self.report)
        value = group.value("accuracy") if group else None
        return -1.0 if value is None else value

    @property
    def device_s_per_1000(self) -> float | None:
        """Busy seconds of devices per 1,000 judgements, as workers measured them; None where none was measured."""
        cost = self.report.cost
        return cost.per_1000(cost.device_s) if cost and cost.measured else None

    @property
    def items_per_s(self) -> float | None:
        """Judgements per second by the ledger's clock; None where they were read from files."""
        speed = self.report.throughput
        return speed.items_per_s if speed and not is_imported(self.report) else None

    @property
    def tokens_per_item(self) -> float | None:
        """Prompt tokens per judgement."""
        settled = self.report.counts.settled
        return self.volume.prompt_tokens / settled if settled and self.volume.prompt_tokens else None

    @property
    def cells(self) -> tuple[str, ...]:
        """One for each of `COLUMNS`."""
        group = average(self.report)
        accuracy = group.metric("accuracy") if group else None
        bounds = accuracy.interval if accuracy else None
        names = ("f1_safe", "f1_unsafe", "auroc", "coverage")
        return (
            figure(accuracy.value if accuracy else None),
            f"{short(bounds.low)}–{short(bounds.high)}" if bounds else "–",
            *(figure(group.value(name) if group else None) for name in names),
            figure(self.items_per_s, 1),
            figure(self.device_s_per_1000, 2),
            figure(self.tokens_per_item, 0),
        )


class Pairing(NamedTuple):
    """A run compared with the first one."""

    first: RunReport
    second: RunReport
    comparison: Comparison

    @property
    def coverage_said(self) -> str:
        """The number of items compared, and why not all."""
        found = self.comparison
        first, second = self.first.counts.settled, self.second.counts.settled
        left_out = [f"{found.dead:,} dead in one of them"] if found.dead else []
        left_out += [f"{found.other_text:,} with another text under the same id"] if found.other_text else []
        tail = f"; left out: {', '.join(left_out)}" if left_out else ""
        return f"{found.compared:,} judgements compared, of {first:,} and {second:,}{tail}"

    @property
    def agreement_said(self) -> str:
        """The share of items on which both say the same."""
        found = self.comparison
        return f"{found.alike / found.compared:.2%} alike" if found.compared else "nothing to compare"

    @property
    def test_said(self) -> str:
        """McNemar's test in a sentence; empty without human labels."""
        test = self.comparison.test
        if test is None:
            return ""
        how = "exact" if test.exact else "chi-square"
        p_value = "< 0.0001" if test.p_value < 0.0001 else f"= {test.p_value:.4f}"
        return (
            f"only {self.first.name} right {test.first_only:,}, only {self.second.name} right {test.second_only:,}: "
            f"p {p_value} (McNemar, {how})"
        )

    @property
    def difference_rows(self) -> list[tuple[str, ...]]:
        """Metric, first, second, difference, interval."""
        return [
            (
                _TITLES[one.metric],
                figure(one.first, 4),
                figure(one.second, 4),
                "–" if one.difference is None else f"{one.difference:+.4f}",
                f"{one.interval.low:+.4f} to {one.interval.high:+.4f}" if one.interval else "–",
            )
            for one in self.comparison.differences
        ]

    def disagreement_rows(self, by: dict[str, SliceDisagreement]) -> list[tuple[str, ...]]:
        """Slice, compared, only first right, only second right; the most divided slice first."""
        parts = sorted(by.items(), key=lambda found: (-(found[1].first_only + found[1].second_only), found[0]))
        return [
            (name or "(no source)", f"{part.compared:,}", f"{part.first_only:,}", f"{part.second_only:,}")
            for name, part in parts
        ]


def by_accuracy(rankings: Sequence[Ranking]) -> list[Ranking]:
    """The runs, best first."""
    return sorted(rankings, key=lambda ranking: (-ranking.accuracy, ranking.report.name))


def to_markdown(rankings: Sequence[Ranking], pairings: Sequence[Pairing]) -> str:
    """A comparison as Markdown: the leaderboard, then each run compared with the first."""
    rows = [(r.report.name, r.report.spec.guard, f"{r.report.counts.accepted:,}", *r.cells) for r in rankings]
    parts = [_table(("Run", "Guard", "n", *COLUMNS), rows, left=2)]
    for pairing in pairings:
        first, second, comparison = _safe(pairing.first.name), _safe(pairing.second.name), pairing.comparison
        said = [pairing.coverage_said, pairing.agreement_said, pairing.test_said]
        parts += [f"### {second} compared with {first}", _safe("; ".join(filter(None, said))) + "."]
        if comparison.differences:
            head = ("Source", "compared", f"only {first}", f"only {second}")
            parts.append(_table(("Average", first, second, "Difference", "95 %"), pairing.difference_rows))
            parts.append(_table(head, pairing.disagreement_rows(comparison.by_source)))
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    rule = [":--" if at < left else "--:" for at in range(len(head))]
    lines = [head, rule, *([_safe(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: str) -> str:
    """A name from data as plain text: no table, link, image or HTML of its own."""
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", printable(text))
