"""Rows counted: all that is kept of them is a few dozen sums per slice, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from infra.metrics.counts import Confusion
from infra.metrics.scores import RankSums, ScoreSums
from schemas.items import Label
from schemas.verdicts import Outcome


class Judged(NamedTuple):
    """One verdict with its item's truth. An item judged several times (`repeat`) is several rows."""

    source: str
    category: str
    subcategory: str
    truth: Label | None
    outcome: Outcome
    label: Label | None
    p_unsafe: float | None
    controversial: bool = False
    """Unsafe by the strict reading, which is the label, and safe by the loose one."""


class Ends(NamedTuple):
    """The ends of the rows of one truth."""

    safe: int
    unsafe: int
    unparseable: int
    dead: int

    @property
    def scored(self) -> int:
        """Rows that got a label."""
        return self.safe + self.unsafe


class Slice(NamedTuple):
    """The rows of one slice by truth, and the scores of those with a truth and a label, summed up."""

    of_unknown: Ends
    of_safe: Ends
    of_unsafe: Ends
    scores_of_unsafe: ScoreSums
    scores_of_safe: ScoreSums

    @property
    def ends(self) -> Ends:
        """The ends of all rows, whatever their truth."""
        return Ends(*map(sum, zip(self.of_unknown, self.of_safe, self.of_unsafe, strict=True)))

    @property
    def confusion(self) -> Confusion:
        """Counts under the rule `libra-head`: a row without a label counts as the opposite of its truth."""
        safe, unsafe = self.of_safe, self.of_unsafe
        return Confusion(unsafe.unsafe, sum(unsafe) - unsafe.unsafe, sum(safe) - safe.safe, safe.safe)

    @property
    def confusion_of_scored(self) -> Confusion:
        """Counts over the rows with a label only: the others abstain."""
        return Confusion(self.of_unsafe.unsafe, self.of_unsafe.safe, self.of_safe.unsafe, self.of_safe.safe)


_ENDS: Final = len(Ends._fields)
_SAFE, _UNSAFE, _UNPARSEABLE, _DEAD = range(_ENDS)
_OF_UNKNOWN, _OF_SAFE, _OF_UNSAFE = range(0, 3 * _ENDS, _ENDS)


class Tally:
    """Counts rows as they stream by, highest score first; ranks them in every slice that they are part of."""

    __slots__ = ("_counts", "_ranks", "_scores_of_safe", "_scores_of_unsafe")

    def __init__(self, ranks: Sequence[RankSums] = ()) -> None:
        self._counts = [0] * (3 * _ENDS)
        self._ranks = ranks
        self._scores_of_safe = ScoreSums(unsafe=False)
        self._scores_of_unsafe = ScoreSums(unsafe=True)

    def add(self, row: Judged) -> None:
        """Count one row.

        Raises:
            ValueError: a scored row has no label, or another row has one; or its score is above that of the row before.
        """
        truth, outcome = row.truth, row.outcome
        if (outcome == Outcome.SCORED) is (row.label is None):
            raise ValueError(f"a row that ended as {outcome} with the label {row.label}")
        if outcome == Outcome.SCORED:
            end = _UNSAFE if row.label == Label.UNSAFE else _SAFE
            if truth is not None and row.p_unsafe is not None:
                unsafe = truth == Label.UNSAFE
                (self._scores_of_unsafe if unsafe else self._scores_of_safe).add(row.p_unsafe)
                for ranks in self._ranks:
                    ranks.add(row.p_unsafe, unsafe=unsafe)
        else:
            end = _DEAD if outcome == Outcome.DEAD else _UNPARSEABLE
        self._counts[end + (_OF_UNKNOWN if truth is None else _OF_UNSAFE if truth == Label.UNSAFE else _OF_SAFE)] += 1

    @classmethod
    def sliced(cls, tallies: Iterable[Tally]) -> Slice:
        """All rows of some tallies as one slice."""
        tallies = list(tallies)
        counts = [sum(column) for column in zip(*(tally._counts for tally in [cls(), *tallies]), strict=True)]
        return Slice(
            Ends(*counts[_OF_UNKNOWN:_OF_SAFE]),
            Ends(*counts[_OF_SAFE:_OF_UNSAFE]),
            Ends(*counts[_OF_UNSAFE:]),
            ScoreSums.merged((tally._scores_of_unsafe for tally in tallies), unsafe=True),
            ScoreSums.merged((tally._scores_of_safe for tally in tallies), unsafe=False),
        )
