"""Parity is counted from pairs: alike is alike, whatever the truth."""

from __future__ import annotations

from producer.report.comparison import Parity
from schemas.items import Label
from schemas.verdicts import Outcome
from tests.support.make import pair


def test_what_ended_alike_agrees_and_two_deaths_say_nothing() -> None:
    parity = Parity.of(
        [
            pair("1"),
            pair("2", labels=(Label.UNSAFE, Label.UNSAFE)),
            pair("3", outcomes=(Outcome.UNPARSEABLE, Outcome.UNPARSEABLE), labels=(None, None)),
            pair("4", outcomes=(Outcome.DEAD, Outcome.DEAD), labels=(None, None)),
        ]
    )
    assert (parity.items, parity.agreement) == (4, 0.75)


def test_disagreements_are_counted_by_source_and_some_are_kept() -> None:
    pairs = [pair(str(at), labels=(Label.SAFE, Label.UNSAFE), source="ab"[at % 2]) for at in range(99)]
    pairs.append(pair("x", outcomes=(Outcome.SCORED, Outcome.UNPARSEABLE), labels=(Label.SAFE, None), source="b"))
    parity = Parity.of(pairs)
    assert parity.by_source == {"a": 50, "b": 50}
    assert parity.cells == {("safe", "unsafe"): 99, ("safe", "unparseable"): 1}
    assert len(parity.examples) == 20


def test_nothing_in_common_is_no_agreement() -> None:
    assert Parity.of([]).agreement == 0
