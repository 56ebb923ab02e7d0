"""A verdict as OpenAI's result, held to the models of OpenAI's own client."""

from __future__ import annotations

import openai.types
from hypothesis import given
from hypothesis import strategies as st

from producer.gateway.api.moderation_result import moderation_result
from producer.gateway.api.openai_categories import BY_SUBCATEGORY, CATEGORIES
from schemas.items import Label
from schemas.verdicts import Outcome, Verdict

UNNAMED = st.sampled_from(["all", *CATEGORIES])


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    outcome = draw(st.sampled_from(Outcome))
    if outcome is not Outcome.SCORED:
        return Verdict(seq=0, outcome=outcome, reason="reason")
    return Verdict(
        seq=0,
        outcome=outcome,
        label=draw(st.sampled_from(Label)),
        p_unsafe=draw(st.none() | st.floats(0, 1)),
        categories=tuple(draw(st.lists(st.sampled_from([*BY_SUBCATEGORY, "S10:hate_abuse", "controversial"])))),
    )


@given(verdicts(), UNNAMED)
def test_every_verdict_is_a_moderation_of_openais_own_schema(verdict: Verdict, unnamed: str) -> None:
    """Strictly: its 13 booleans are booleans and its 13 numbers are numbers of [0, 1], never null."""
    result = moderation_result(verdict, "item", unnamed_category=unnamed)

    openai.types.Moderation.model_validate(result, strict=True)
    scores = result["category_scores"].values()
    assert len(scores) == len(result["categories"]) == 13
    assert all(0 <= score <= 1 for score in scores)


@given(verdicts(), UNNAMED)
def test_what_is_not_known_to_be_safe_has_a_true_category_and_a_score_of_a_half_or_more(
    verdict: Verdict, unnamed: str
) -> None:
    result = moderation_result(verdict, "item", unnamed_category=unnamed)

    true = [name for name, value in result["categories"].items() if value]
    safe = verdict.outcome is Outcome.SCORED and verdict.label is Label.SAFE
    assert result["flagged"] is not safe
    assert bool(true) is not safe
    assert all(result["category_scores"][name] >= 0.5 for name in true)


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2), UNNAMED)
def test_the_largest_score_ranks_items_as_the_guard_does(ps_unsafe: list[float], unnamed: str) -> None:
    """So that a benchmark which reads category_scores finds the guard's own AUROC."""
    ranked = [
        Verdict(seq=0, outcome=Outcome.SCORED, label=Label.UNSAFE if p > 0.5 else Label.SAFE, p_unsafe=p)
        for p in sorted(ps_unsafe)
    ]
    largest = [max(moderation_result(v, "i", unnamed_category=unnamed)["category_scores"].values()) for v in ranked]
    assert largest == [verdict.p_unsafe for verdict in ranked]


def test_the_guards_own_categories_come_before_the_fail_safe_one() -> None:
    named = Verdict(seq=0, outcome=Outcome.SCORED, label=Label.UNSAFE, p_unsafe=0.9, categories=("S10:hate_abuse",))
    unmapped = named.model_copy(update={"categories": ("personal_data",)})

    result = moderation_result(named, "i", unnamed_category="all")
    other = moderation_result(unmapped, "i", unnamed_category="illicit")

    assert [name for name, value in result["categories"].items() if value] == ["harassment"]
    assert result["category_scores"] == {**dict.fromkeys(CATEGORIES, 0.0), "harassment": 0.9}
    assert result["libra"]["categories_named"] == "guard"
    assert [name for name, value in other["categories"].items() if value] == ["illicit"]
    assert other["libra"]["categories_named"] == "fail_safe"
