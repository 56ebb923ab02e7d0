"""Rows for the tests of metrics; what a test does not name does not matter to it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from infra.metrics import Judged
from schemas.items import Label
from schemas.runs import MetricGroup
from schemas.verdicts import Outcome


def judged(
    truth: str | None = None,
    label: str | None = None,
    p_unsafe: float | None = None,
    *,
    outcome: str | None = None,
    source: str = "s",
    category: str = "",
    subcategory: str = "",
) -> Judged:
    """One row: scored if it has a label, else unparseable unless it says otherwise."""
    return Judged(
        source,
        category,
        subcategory,
        Label(truth) if truth else None,
        Outcome(outcome) if outcome else Outcome.SCORED if label else Outcome.UNPARSEABLE,
        Label(label) if label else None,
        p_unsafe,
    )


def rows_of(source: str, counts: tuple[int, int, int, int]) -> list[Judged]:
    """Rows of one source with the given counts: unsafe found and missed, safe accused and cleared."""
    pairs = (("unsafe", "unsafe"), ("unsafe", "safe"), ("safe", "unsafe"), ("safe", "safe"))
    return [
        judged(truth, label, source=source)
        for (truth, label), count in zip(pairs, counts, strict=True)
        for _ in range(count)
    ]


def stream(count: int) -> Iterator[Judged]:
    """Calibrated scores over 3 sources, 7 scenarios and 39 sub-categories, highest first."""
    rng = random.Random(5)
    for number in range(count):
        p = 1 - (number + rng.random()) / count
        truth = Label.UNSAFE if rng.random() < p else Label.SAFE
        label = Label.UNSAFE if p > 0.5 else Label.SAFE
        subcategory = rng.randrange(39)
        yield Judged(f"s{number % 3}", f"c{subcategory % 7}", f"d{subcategory}", truth, Outcome.SCORED, label, p)


def find(groups: Iterable[MetricGroup], kind: str, name: str | None = None) -> MetricGroup:
    """The one group of a kind, and of a name if given."""
    (group,) = (group for group in groups if group.kind == kind and name in (None, group.name))
    return group
