"""A policy turns a verdict into an action: which rule counts, and that nothing passes because nobody judged it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.items import Label
from schemas.policy import Action, Policy, decide, surface_of
from schemas.verdicts import CONTROVERSIAL, Outcome, Verdict

FORUM = Policy.model_validate(
    {
        "policy": "forum",
        "version": 1,
        "thresholds": {"review": 0.5, "block": 0.9},
        "categories": {
            "illegal_activities": {"block": 0.8},
            "gambling": {"review": 0.1},
            "仇恨辱骂": {"review": 0.3},
            "S4": {"block": 0.2},
        },
        "surfaces": {
            "comment": {
                "thresholds": {"block": 0.5},
                "categories": {"illegal_activities": {"block": 0.4}},
                "dead": Action.BLOCK,
                "controversial": Action.PASS,
            }
        },
    }
)


def scored(p_unsafe: float | None, *categories: str, label: Label = Label.UNSAFE) -> Verdict:
    return Verdict(seq=0, outcome=Outcome.SCORED, label=label, p_unsafe=p_unsafe, categories=categories)


DEAD = Verdict(seq=0, outcome=Outcome.DEAD, reason="lost")
UNPARSEABLE = Verdict(seq=0, outcome=Outcome.UNPARSEABLE)


@pytest.mark.parametrize(
    ("verdict", "surface", "action"),
    [
        (scored(0.49), "", Action.PASS),
        (scored(0.5), "", Action.REVIEW),
        (scored(0.9), "", Action.BLOCK),
        (scored(0.6), "comment", Action.BLOCK),
        (scored(0.49), "comment", Action.PASS),
        (scored(0.6), "elsewhere", Action.REVIEW),
        (scored(0.85, "illegal_activities"), "", Action.BLOCK),
        (scored(0.7, "illegal_activities"), "", Action.PASS),
        (scored(0.7, "illegal_activities"), "comment", Action.BLOCK),
        (scored(0.85, "gambling"), "", Action.REVIEW),
        (scored(0.85, "pornography"), "", Action.BLOCK),
        (scored(0.35, "S10:hate_abuse"), "", Action.REVIEW),
        (scored(0.25, "S4:illegal_activities"), "", Action.BLOCK),
        (scored(0.35, "S10:hate_abuse", "S4"), "", Action.BLOCK),
        (scored(0.35, "S10:hate_abuse", "S99"), "", Action.REVIEW),
        (scored(0.6, "S99"), "", Action.REVIEW),
        (scored(0.99, CONTROVERSIAL), "", Action.REVIEW),
        (scored(0.99, "S4", CONTROVERSIAL), "comment", Action.PASS),
        (scored(None), "", Action.BLOCK),
        (scored(None, label=Label.SAFE), "", Action.PASS),
        (DEAD, "", Action.REVIEW),
        (DEAD, "comment", Action.BLOCK),
        (UNPARSEABLE, "", Action.REVIEW),
        (UNPARSEABLE, "comment", Action.REVIEW),
    ],
)
def test_the_most_specific_rule_counts_and_of_several_categories_the_strictest(
    verdict: Verdict, surface: str, action: Action
) -> None:
    assert decide(FORUM, verdict, surface=surface).action is action


@given(low=st.floats(0, 1), high=st.floats(0, 1), review=st.floats(0, 1), block=st.floats(0, 1))
def test_a_likelier_unsafe_is_never_treated_more_mildly(low: float, high: float, review: float, block: float) -> None:
    low, high = sorted((low, high))
    review, block = sorted((review, block))
    rules = Policy.model_validate({"policy": "p", "version": 1, "thresholds": {"review": review, "block": block}})

    assert decide(rules, scored(low)).action.severity <= decide(rules, scored(high)).action.severity


def test_without_a_word_about_it_nothing_passes_that_nobody_judged() -> None:
    silent = Policy.model_validate({"policy": "p", "version": 1, "thresholds": {}})

    assert {decide(silent, verdict).action for verdict in (DEAD, UNPARSEABLE)} == {Action.REVIEW}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"thresholds": {"review": 0.9, "block": 0.5}}, "would never happen"),
        ({"thresholds": {"block": 1.5}}, "less than or equal to 1"),
        ({"version": 0}, "greater than or equal to 1"),
        ({"policy": "No Name"}, "match pattern"),
        ({"categories": {"hate_abuse": {}, "仇恨辱骂": {}}}, "the same category"),
        ({"categories": {"controversial": {"block": 0.1}}}, "no category"),
        ({"treshold": {}}, "not permitted"),
    ],
)
def test_what_makes_no_policy_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Policy.model_validate({"policy": "p", "version": 1, "thresholds": {}, **change})


def test_names_outside_the_taxonomy_are_told_apart() -> None:
    assert FORUM.foreign_categories() == ["S4"]


def test_a_surface_comes_from_metadata_before_the_source() -> None:
    assert surface_of({"surface": "comment"}, "post") == "comment"
    assert [surface_of(other, "post") for other in (None, {}, {"surface": 3}, {"surface": ""})] == ["post"] * 4
