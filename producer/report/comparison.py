"""Two runs over the same items, compared pair by pair. Knows no ledger: what both settled comes in as a stream."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from infra.ledger.items import PairedVerdict
from infra.metrics.paired import Cell, Difference, McNemar, differences, mcnemar
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
    """Where the labels differ, the widest gap between the scores first."""

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
                    entry = (_gap(row), -row.seq, -number, row)
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


def _gap(row: PairedVerdict) -> float:
    """How far the scores are apart; a side without a score is as far as can be."""
    first, second = row.scores
    return 1.0 if first is None or second is None else abs(first - second)


@dataclass
class Parity:
    """How the runs of a guard's two modes ended, deaths included. `cells` counts items by (first, second) end."""

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
