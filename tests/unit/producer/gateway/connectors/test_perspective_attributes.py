"""What a verdict becomes in Perspective's attributes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.gateway.connectors.perspective_attributes import ATTRIBUTES, expressed, mapped, scores
from schemas.items import Label
from schemas.taxonomy import SCENARIOS, SUBCATEGORIES
from schemas.verdicts import Outcome, Verdict

CODES = [*(scenario.code for scenario in SCENARIOS), *(sub.code for sub in SUBCATEGORIES)]
EVERY = list(ATTRIBUTES)


def verdict(label: Label | None, p_unsafe: float | None = None, *categories: str) -> Verdict:
    outcome = Outcome.SCORED if label else Outcome.UNPARSEABLE
    return Verdict(seq=0, outcome=outcome, label=label, p_unsafe=p_unsafe, categories=categories)


def test_every_code_in_the_table_is_one_of_our_taxonomy() -> None:
    assert {code for ours in ATTRIBUTES.values() for code in ours} <= set(CODES)


@given(
    st.sampled_from([Label.UNSAFE, None]),
    st.none() | st.floats(0, 1),
    st.lists(st.sampled_from([*CODES, "S1:hate_abuse", "own", "controversial"]), max_size=3),
)
def test_what_is_unsafe_or_not_judged_scores_half_at_least_in_toxicity(
    label: Label | None, p_unsafe: float | None, categories: list[str]
) -> None:
    assert scores(verdict(label, p_unsafe, *categories), ["TOXICITY"])["TOXICITY"] >= 0.5


@given(st.sampled_from([Label.SAFE, Label.UNSAFE, None]), st.none() | st.floats(0, 1), st.lists(st.sampled_from(CODES)))
def test_scores_are_numbers_from_0_to_1_for_what_was_asked(
    label: Label | None, p_unsafe: float | None, categories: list[str]
) -> None:
    found = scores(verdict(label, p_unsafe, *categories), EVERY)

    assert list(found) == EVERY
    assert all(0 <= score <= 1 for score in found.values())


def test_a_named_category_shows_in_its_attributes_alone() -> None:
    found = scores(verdict(Label.UNSAFE, 0.9, "S10:hostility_aggression"), ["TOXICITY", "INSULT", "THREAT", "OBSCENE"])
    assert found == {"TOXICITY": 0.9, "INSULT": 0.9, "THREAT": 0.9, "OBSCENE": 0.9}

    found = scores(verdict(Label.UNSAFE, 0.9, "pornography"), ["SEXUALLY_EXPLICIT", "INSULT", "SEVERE_TOXICITY"])
    assert found == {"SEXUALLY_EXPLICIT": 0.9, "INSULT": 0.0, "SEVERE_TOXICITY": 0.9}


def test_a_scenario_alone_may_be_any_of_its_sub_categories_and_a_sub_category_is_no_sibling() -> None:
    assert {"SEXUALLY_EXPLICIT", "THREAT"} <= expressed(["illegal_activities"])
    assert "THREAT" not in expressed(["pornography"])


@pytest.mark.parametrize("categories", [(), ("personal_data",), ("own-code",), ("controversial",)])
def test_an_unsafe_text_whose_categories_express_nothing_scores_in_all(categories: tuple[str, ...]) -> None:
    assert set(scores(verdict(Label.UNSAFE, 0.3, *categories), EVERY).values()) == {0.5}


def test_a_text_without_a_verdict_scores_1_and_a_safe_one_its_probability() -> None:
    assert set(scores(verdict(None), EVERY).values()) == {1.0}
    assert set(scores(verdict(Label.SAFE, 0.2), EVERY).values()) == {0.2}
    assert set(scores(verdict(Label.SAFE), EVERY).values()) == {0.0}


def test_experimental_names_are_the_same_and_what_nobody_judges_is_unknown() -> None:
    assert mapped("THREAT_EXPERIMENTAL") == "THREAT"
    assert mapped("SPAM") is mapped("FLIRTATION") is mapped("COMPASSION_EXPERIMENTAL") is None
