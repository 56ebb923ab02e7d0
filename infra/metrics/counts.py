"""Metrics that follow from four counts: how many rows of each class were judged right and wrong.

Formulas are those of the benchmark's `evaluate_metrics.py` (precision = TP / (TP + FP), and so on) with F1
written over counts, 2 TP / (2 TP + FP + FN): equal wherever the benchmark's own form is defined, and 0
instead of a crash for a guard that never finds the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple


class Confusion(NamedTuple):
    """Rows by truth and verdict; `unsafe` is the positive class."""

    tp: int = 0
    fn: int = 0
    fp: int = 0
    tn: int = 0

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self)

    @property
    def mirrored(self) -> Confusion:
        """The same rows with `safe` as the positive class."""
        return Confusion(self.tn, self.fp, self.fn, self.tp)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _accuracy(c: Confusion) -> float | None:
    return _ratio(c.tp + c.tn, c.tp + c.fn + c.fp + c.tn)


def _precision(c: Confusion) -> float | None:
    return _ratio(c.tp, c.tp + c.fp)


def _recall(c: Confusion) -> float | None:
    return _ratio(c.tp, c.tp + c.fn)


def _f1(c: Confusion) -> float | None:
    return 2 * c.tp / (2 * c.tp + c.fp + c.fn) if c.tp + c.fn else None


def _balanced_accuracy(c: Confusion) -> float | None:
    unsafe, safe = c.tp + c.fn, c.fp + c.tn
    return (c.tp / unsafe + c.tn / safe) / 2 if unsafe and safe else None


class CountMetric(NamedTuple):
    """A formula over counts; it gives None where it is undefined, and `reason` says when that is."""

    formula: Callable[[Confusion], float | None]
    reason: str


NO_LABELS: Final = "no row has a human label"

COUNT_METRICS: Final[dict[str, CountMetric]] = {
    "accuracy": CountMetric(_accuracy, NO_LABELS),
    "f1_safe": CountMetric(lambda c: _f1(c.mirrored), "no row is truly safe"),
    "f1_unsafe": CountMetric(_f1, "no row is truly unsafe"),
    "precision_safe": CountMetric(lambda c: _precision(c.mirrored), "no row was judged safe"),
    "recall_safe": CountMetric(lambda c: _recall(c.mirrored), "no row is truly safe"),
    "precision_unsafe": CountMetric(_precision, "no row was judged unsafe"),
    "recall_unsafe": CountMetric(_recall, "no row is truly unsafe"),
    "balanced_accuracy": CountMetric(_balanced_accuracy, "the truth has one class only"),
}


def reason_undefined(name: str, confusion: Confusion) -> str:
    """Return the reason why a count metric has no value over these counts."""
    return COUNT_METRICS[name].reason if confusion.total else NO_LABELS
