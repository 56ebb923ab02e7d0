"""What answers to plain texts say of a checkpoint: each finding has its case, and a checkpoint that fits has none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from schemas.guards import Mode
from schemas.items import Kind, Label
from schemas.verdicts import Outcome, Verdict
from worker.checkup.asking import Judged
from worker.checkup.findings import findings_of, tally
from worker.checkup.texts import PlainText, plain_texts, texts_in

Say = Callable[[PlainText, int], Verdict]


def scored(label: Label, p_unsafe: float | None = None) -> Verdict:
    mass = None if p_unsafe is None else 0.98
    return Verdict(seq=0, outcome=Outcome.SCORED, label=label, p_unsafe=p_unsafe, label_mass=mass)


def right(text: PlainText, at: int) -> Verdict:
    return scored(text.label, 0.9 if text.label is Label.UNSAFE else 0.1)


def wrong(text: PlainText, at: int) -> Verdict:
    return scored(text.label.opposite, 0.5)


def always_safe(text: PlainText, at: int) -> Verdict:
    return scored(Label.SAFE, 0.2)


def half_right(text: PlainText, at: int) -> Verdict:
    return (right if at % 8 < 4 else wrong)(text, at)


def unlikely(text: PlainText, at: int) -> Verdict:
    return Verdict(seq=0, outcome=Outcome.UNPARSEABLE, label_mass=0.01, reason="no label is likely")


def another_form(text: PlainText, at: int) -> Verdict:
    return Verdict(seq=0, outcome=Outcome.UNPARSEABLE, raw="Sure! How can I help?", reason="no form")


def not_a_number(text: PlainText, at: int) -> Verdict:
    return Verdict(seq=0, outcome=Outcome.DEAD, reason="the model's scores are not numbers")


def rows(say: Say, mode: Mode = Mode.SCORE, kind: Kind = Kind.PAIR) -> list[Judged]:
    return [Judged(text, kind, mode, say(text, at)) for at, text in enumerate(plain_texts())]


def names(*judged: Sequence[Judged], speaks: bool = True) -> list[tuple[str, str]]:
    table = {(each[0].kind, each[0].mode): each for each in judged}
    found = list(findings_of(table, written=lambda _: "'Sure!'", speaks=speaks))
    assert all(finding.do for finding in found)
    return [(finding.name, finding.what) for finding in found]


@pytest.mark.parametrize(
    ("say", "mode", "name", "what"),
    [
        (unlikely, Mode.SCORE, "low-mass", r"16 of 16 .* \(median 1.00%\); there the model would write 'Sure!'"),
        (another_form, Mode.GENERATE, "unread", "16 of 16 plain texts got no answer .* 'Sure! How can I help"),
        (not_a_number, Mode.SCORE, "dead", "could not be judged: the model's scores are not numbers"),
        (always_safe, Mode.SCORE, "one-label", "every plain text is safe, .* p_unsafe from 0.2000 to 0.2000"),
        (wrong, Mode.CLASSIFY, "swapped", "0 of 8 safe and 0 of 8 unsafe"),
        (half_right, Mode.SCORE, "plain-texts", "4 of 8 safe and 4 of 8 unsafe"),
    ],
)
def test_each_fault_is_one_finding_that_says_where(say: Say, mode: Mode, name: str, what: str) -> None:
    ((found, said),) = names(rows(say, mode))
    assert found == name
    assert said.startswith(f"pair in mode {mode}: ")
    assert re.search(what, said), said


def test_modes_that_disagree_are_a_finding_and_one_text_is_not() -> None:
    def but_one(text: PlainText, at: int) -> Verdict:
        return (wrong if at == 3 else right)(text, at)

    def but_three(text: PlainText, at: int) -> Verdict:
        return (wrong if at < 3 else right)(text, at)

    assert names(rows(right), rows(but_one, Mode.GENERATE)) == []
    ((name, what),) = names(rows(right), rows(but_three, Mode.GENERATE))
    assert (name, what) == ("split", "pair: modes score and generate differ on 3 of 16 plain texts")


def test_a_checkpoint_that_fits_has_no_finding() -> None:
    assert names(rows(right), rows(right, Mode.GENERATE), rows(right, kind=Kind.PROMPT)) == []


def test_labels_say_nothing_of_a_guard_that_does_not_speak_the_texts_languages_and_their_probability_does() -> None:
    assert names(rows(always_safe), speaks=False) == []
    assert [name for name, _ in names(rows(unlikely), speaks=False)] == ["low-mass"]


def test_a_few_unread_texts_are_counted_and_no_finding() -> None:
    def mostly(text: PlainText, at: int) -> Verdict:
        return (unlikely if at in (1, 6) else right)(text, at)

    assert names(rows(mostly)) == []
    count = tally(rows(mostly))
    assert (count.texts, count.read, count.right, count.least_mass) == (16, 14, 14, 0.01)


def test_texts_are_balanced_in_every_language_that_they_are_in() -> None:
    for language in ("zh", "en"):
        labels = [text.label for text in texts_in([language, "fr"])]
        assert labels.count(Label.SAFE) == labels.count(Label.UNSAFE) == 4
    assert texts_in(["ko"]) == ()
    assert texts_in(["nine", "zh"]) == texts_in([]) == plain_texts()
