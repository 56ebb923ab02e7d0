"""Perspective's attributes, and which of our categories each expresses. Data with reasons, and the scores they give.

Names are those of Perspective's attribute reference. The mapping is ours: its scores are a guard's P(unsafe), not the
output of Google's models, and thresholds that were tuned on those have to be looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from schemas.items import Label
from schemas.taxonomy import SCENARIOS, SUBCATEGORIES
from schemas.verdicts import Verdict

_EVERYTHING: Final = tuple(scenario.code for scenario in SCENARIOS)
_EXPERIMENTAL: Final = "_EXPERIMENTAL"
_LEAST_FLAGGED_SCORE: Final = 0.5
"""As on OpenAI's wire: a flagged text scores no less in what it is flagged for."""

ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    # The attribute that platforms act on: whatever the guard calls unsafe must show in it.
    "TOXICITY": _EVERYTHING,
    # No guard here grades severity. A smaller score than TOXICITY's would be invented, and would let texts pass.
    "SEVERE_TOXICITY": _EVERYTHING,
    # Perspective: "targeting someone because of their identity"; our scenario lists the same groups.
    "IDENTITY_ATTACK": ("bias_discrimination",),
    # Perspective: "insulting … comment towards a person or a group of people".
    "INSULT": ("hate_abuse",),
    # No category of ours is about single words; abuse is where swearing shows.
    "PROFANITY": ("hate_abuse",),
    # Perspective: "intention to inflict pain, injury, or violence".
    "THREAT": ("hostility_aggression", "violent_crimes", "personal_crimes", "bodily_harm"),
    # Perspective: "references to sexual acts, body parts, or other lewd content".
    "SEXUALLY_EXPLICIT": ("pornography",),
    # Of the New York Times' attributes: "obscene or vulgar language".
    "OBSCENE": ("hate_abuse", "pornography"),
    # Whom an attack is against, no guard here says.
    "ATTACK_ON_AUTHOR": ("hate_abuse",),
    "ATTACK_ON_COMMENTER": ("hate_abuse",),
    # "Intending to provoke or inflame": against persons or against groups.
    "INFLAMMATORY": ("hate_abuse", "bias_discrimination"),
    # "How likely the comment would be rejected by moderators": for whatever reason.
    "LIKELY_TO_REJECT": _EVERYTHING,
}
"""Attribute → codes of our scenarios and sub-categories. Others (SPAM, FLIRTATION, …) no guard here judges."""


def mapped(attribute: str) -> str | None:
    """The attribute's name in `ATTRIBUTES`, an experimental one's too; None where no guard here judges it."""
    name = attribute.removesuffix(_EXPERIMENTAL)
    return name if name in ATTRIBUTES else None


def expressed(codes: Iterable[str]) -> frozenset[str]:
    """The attributes that a verdict's categories express, those that stand for everything left out.

    A scenario without a sub-category may be any of its sub-categories.
    """
    named = {code.rpartition(":")[2] for code in codes}
    scenarios = {sub.scenario for sub in SUBCATEGORIES if sub.code in named}
    subcategories = {sub.code for sub in SUBCATEGORIES if sub.scenario in named}
    meant = named | scenarios | subcategories
    return frozenset(name for name, ours in ATTRIBUTES.items() if ours != _EVERYTHING and meant.intersection(ours))


def scores(verdict: Verdict, attributes: Iterable[str]) -> dict[str, float]:
    """A score in [0, 1] for each of the mapped attributes.

    A safe text scores its P(unsafe) in all of them: no kind of harm is likelier than their union. An unsafe one scores
    it, 0.5 at least, in those that its categories express, and 0 in the others; in all of them where its categories
    express none. A text that was not judged scores 1 in all.
    """
    asked = list(attributes)
    if verdict.label is None:
        return dict.fromkeys(asked, 1.0)
    score = verdict.p_unsafe if verdict.p_unsafe is not None else float(verdict.label is Label.UNSAFE)
    if verdict.label is Label.SAFE:
        return dict.fromkeys(asked, score)
    named = expressed(verdict.categories)
    high = max(score, _LEAST_FLAGGED_SCORE)
    return {
        one: high if not named or mapped(one) in named or ATTRIBUTES[str(mapped(one))] == _EVERYTHING else 0.0
        for one in asked
    }
