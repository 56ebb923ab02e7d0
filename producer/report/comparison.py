"""Two runs side by side, over the items that both judged. Knows no ledger: what both settled comes in as a stream."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from infra.ledger.comparing import PairedVerdict
from infra.metrics.paired import Cell, Difference, McNemar, count_pairs, differences, mcnemar
from schemas.verdicts import Outcome

COMPARED: Final = ("accuracy", "f1_safe", "f1_unsafe", "balanced_accuracy")
EXAMPLES: Final = 100


@dataclass
class SliceDisagreement:
    """Judgements of a slice: all that are compared, and those with a human label that one side alone got right."""

    compared: int = 0
    first_only: int = 0
    second_only: int = 0


@dataclass
class Comparison:
    """What two runs say of the same items.

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
        """Compare what both runs settled."""
        found = cls()
        kept = found._examples_kept(found._counted(rows))
        pairs: dict[str, Counter[Cell]] = count_pairs(
            (row.source, row.truth, *row.labels) for row in kept if row.truth is not None
        )
        if pairs:
            found.test = mcnemar(pairs)
            found.differences = differences(pairs, COMPARED, seed=seed)
        return found

    def _counted(self, rows: Iterable[PairedVerdict]) -> Iterator[PairedVerdict]:
        """The rows that are compared, counted as they pass."""
        for row in rows:
            if Outcome.DEAD in row.outcomes:
                self.dead += 1
            elif not row.same_text:
                self.other_text += 1
            else:
                self._count(row)
                yield row

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

    def _examples_kept(self, rows: Iterable[PairedVerdict]) -> Iterator[PairedVerdict]:
        """The rows as they come; the examples are there once all have passed."""
        heap: list[tuple[float, int, int, PairedVerdict]] = []
        for number, row in enumerate(rows):
            if row.labels[0] != row.labels[1]:
                entry = (_gap(row), -row.seq, -number, row)
                (heapq.heappush if len(heap) < EXAMPLES else heapq.heappushpop)(heap, entry)
            yield row
        self.examples = [row for *_, row in sorted(heap, key=lambda entry: entry[:3], reverse=True)]


def _gap(row: PairedVerdict) -> float:
    """How far the scores are apart; a side without a score is as far as can be."""
    first, second = row.scores
    return 1.0 if first is None or second is None else abs(first - second)
