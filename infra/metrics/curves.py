"""The data of a run's figures: rows, highest score first, swept over all thresholds.

The metrics themselves are `measure`'s. Here are the points between them, in counts, so that nothing is computed in a
second way: bins are those of ECE, and a threshold's metrics follow from its counts by the same formulas.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from math import inf
from typing import Final, NamedTuple

from infra.metrics.counts import Confusion
from infra.metrics.scores import ScoreSums, begins_tie
from infra.metrics.tally import Judged
from schemas.items import Label

THRESHOLDS: Final = tuple(k / 100 for k in range(101))
"""One point of the sweep: rows with at least this p_unsafe are called unsafe."""

MAX_POINTS: Final = 1_024


class Curve(NamedTuple):
    """Unsafe rows found and safe rows accused as the threshold falls, at some scores; the last point has all rows.

    Every point lies exactly on the curve; there are at most `MAX_POINTS` of them, however many rows.
    """

    found: tuple[int, ...]
    accused: tuple[int, ...]

    def roc(self) -> tuple[list[float], list[float]]:
        """False alarms over all safe rows, and unsafe rows found over all of them; from (0, 0) to (1, 1)."""
        return (
            [0.0, *(count / self.accused[-1] for count in self.accused)],
            [0.0, *(count / self.found[-1] for count in self.found)],
        )

    def precision_recall(self) -> tuple[list[float], list[float]]:
        """Recall, and precision at it. There is no point without a row called unsafe: precision is undefined there."""
        said = [found + accused for found, accused in zip(self.found, self.accused, strict=True)]
        return (
            [count / self.found[-1] for count in self.found],
            [count / rows for count, rows in zip(self.found, said, strict=True)],
        )


class Bin(NamedTuple):
    """The rows with p_unsafe in one of ECE's bins: how many of either truth, and the mean of their p_unsafe."""

    safe: int
    unsafe: int
    mean: float | None

    @property
    def share_unsafe(self) -> float | None:
        """The number of its rows that are truly unsafe."""
        rows = self.safe + self.unsafe
        return self.unsafe / rows if rows else None


class ThresholdSweep(NamedTuple):
    """A run over all thresholds. A curve is absent where its rows are of one class; `sweep` where no row has a score.

    `sweep` holds the counts at each of `THRESHOLDS` by the rule `libra-head`: what has no label is wrong at any.
    """

    whole: Curve | None
    by_source: dict[str, Curve]
    bins: tuple[Bin, ...]
    sweep: tuple[Confusion, ...]


def trace(rows: Iterable[Judged], sources: Collection[str] = ()) -> ThresholdSweep:
    """Trace rows that come by p_unsafe, highest first, in memory that does not grow with them.

    Rows are read once; those without a human label say nothing here. Each of `sources` gets a curve of its own.

    Raises:
        ValueError: the order is not as said.
    """
    whole, by_source = _Tracing(), {source: _Tracing() for source in sources}
    sweep, safe, unsafe = _Sweep(), ScoreSums(unsafe=False), ScoreSums(unsafe=True)
    for row in rows:
        if row.truth is None:
            continue
        sweep.add(row)
        if row.p_unsafe is None or row.label is None:
            continue
        is_unsafe = row.truth == Label.UNSAFE
        (unsafe if is_unsafe else safe).add(row.p_unsafe)
        whole.add(row.p_unsafe, unsafe=is_unsafe)
        if row.source in by_source:
            by_source[row.source].add(row.p_unsafe, unsafe=is_unsafe)
    curves = {source: tracing.curve() for source, tracing in by_source.items()}
    # Merging folds what is still buffered.
    merged = ScoreSums.merged([safe], unsafe=False).bins(), ScoreSums.merged([unsafe], unsafe=True).bins()
    bins = []
    for (low, safe_rows), (high, unsafe_rows) in zip(*merged, strict=True):
        rows_of_bin = safe_rows + unsafe_rows
        bins.append(Bin(safe_rows, unsafe_rows, (low + high) / rows_of_bin if rows_of_bin else None))
    return ThresholdSweep(
        whole.curve(),
        {source: curve for source, curve in curves.items() if curve},
        tuple(bins),
        sweep.counts() if safe.count + unsafe.count else (),
    )


class _Tracing:
    """Keeps points at the ends of ties. When there are too many, every other one goes and the next are sparser."""

    def __init__(self) -> None:
        self._score = inf
        self._found = self._accused = 0
        self._points: list[tuple[int, int]] = []
        self._kept_at = 0
        self._every = 1

    def add(self, score: float, *, unsafe: bool) -> None:
        if begins_tie(score, after=self._score):
            self._score = score
            rows = self._found + self._accused
            if rows - self._kept_at >= self._every:
                self._points.append((self._found, self._accused))
                self._kept_at = rows
                if len(self._points) > MAX_POINTS:
                    self._points = self._points[1::2]
                    self._every *= 2
        if unsafe:
            self._found += 1
        else:
            self._accused += 1

    def curve(self) -> Curve | None:
        last = self._found, self._accused
        if not all(last):
            return None
        points = [*self._points, *([last] if not self._points or self._points[-1] != last else [])]
        return Curve(tuple(found for found, _ in points), tuple(accused for _, accused in points))


class _Sweep:
    """Rows of either truth by the highest threshold that still calls them unsafe; those without a score stand apart."""

    def __init__(self) -> None:
        self._fixed = Confusion()
        self._reached = {label: [0] * (len(THRESHOLDS) + 1) for label in Label}

    def add(self, row: Judged) -> None:
        if row.truth is None:
            return
        if row.label is not None and row.p_unsafe is not None:
            self._reached[row.truth][bisect_right(THRESHOLDS, row.p_unsafe)] += 1
            return
        right = row.label == row.truth
        at = (0 if right else 1) if row.truth == Label.UNSAFE else (3 if right else 2)
        self._fixed = Confusion(*(count + (place == at) for place, count in enumerate(self._fixed)))

    def counts(self) -> tuple[Confusion, ...]:
        unsafe, safe = self._reached[Label.UNSAFE], self._reached[Label.SAFE]
        fixed = self._fixed
        return tuple(
            Confusion(
                fixed.tp + sum(unsafe[at + 1 :]),
                fixed.fn + sum(unsafe[: at + 1]),
                fixed.fp + sum(safe[at + 1 :]),
                fixed.tn + sum(safe[: at + 1]),
            )
            for at in range(len(THRESHOLDS))
        )
