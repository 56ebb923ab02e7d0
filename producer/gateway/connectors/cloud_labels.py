"""What Aliyun and Tencent call our categories. Data with reasons, no logic beyond a look-up.

Aliyun's labels are those of its enhanced text moderation, Tencent's those of its text moderation (TMS). Levels and
suggestions come from the action, never from a category.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from schemas.policy import Action
from schemas.taxonomy import SUBCATEGORIES

_SCENARIO_OF: Final = {sub.code: sub.scenario for sub in SUBCATEGORIES}


class CloudLabels(NamedTuple):
    """A cloud's labels: by sub-category before scenario; `unnamed` where neither is on the list."""

    by_category: Mapping[str, str]
    safe: str
    unnamed: str

    def of(self, codes: Iterable[str]) -> list[str]:
        """The labels for a verdict's categories, without repeats, in their order; `unnamed` where none is mapped."""
        ours = [code.rpartition(":")[2] for code in codes]
        found = (self.by_category.get(code) or self.by_category.get(_SCENARIO_OF.get(code, "")) for code in ours)
        return list(dict.fromkeys(filter(None, found))) or [self.unnamed]


ALIYUN_RISK_LEVEL: Final = {
    Action.PASS: "none",
    # Aliyun: "medium: have it reviewed by a human".
    Action.REVIEW: "medium",
    # Aliyun: "high: handle it at once".
    Action.BLOCK: "high",
}
ALIYUN_TOLERATED: Final = "low"
"""Aliyun: "handle it where recall matters, else as none". Here: the guard says unsafe, and the policy lets it pass."""

TENCENT_SUGGESTION: Final = {Action.PASS: "Pass", Action.REVIEW: "Review", Action.BLOCK: "Block"}

ALIYUN: Final = CloudLabels(
    safe="nonLabel",
    # Ours; Aliyun has no label for "unsafe, and the guard names no category".
    unnamed="libra_unsafe",
    by_category={
        # Acts against the law that have no label of their own below.
        "illegal_activities": "contraband_act",
        "gambling": "contraband_gambling",
        # Drugs and forbidden goods; Aliyun's label names drugs, the commonest of them.
        "contraband_crimes": "contraband_drug",
        "special_control": "violent_weapons",  # weapons and explosives
        "violent_crimes": "violent_incidents",
        "personal_crimes": "violent_incidents",
        "bodily_harm": "violent_incidents",
        "pornography": "pornographic_adult",
        "feudal_superstition": "religion_others",  # Aliyun files superstition under religion
        # "Discrimination" of groups, for whatever trait.
        "bias_discrimination": "inappropriate_discrimination",
        "belief": "inappropriate_religion",
        # Abuse of persons: Aliyun's profanity is "insults and swearing".
        "hate_abuse": "inappropriate_profanity",
        "ethics_morality": "inappropriate_ethics",
        # No counterpart for privacy, rumours and self-harm: ours, so that nobody takes them for something else.
        "privacy_property": "libra_privacy_property",
        "rumors_misinformation": "libra_rumors_misinformation",
        "physical_mental_health": "libra_physical_mental_health",
    },
)

TENCENT: Final = CloudLabels(
    safe="Normal",
    # Tencent: "custom types and other offensive, unsafe or unsuitable content".
    unnamed="Custom",
    by_category={
        "illegal_activities": "Illegal",
        "pornography": "Porn",
        "violent_crimes": "Terror",  # Tencent's Terror is violence and terror together
        "special_control": "Terror",  # weapons and explosives
        # Insults of persons or groups: Tencent has one label for both.
        "hate_abuse": "Abuse",
        "bias_discrimination": "Abuse",
        # No counterpart: Custom, which covers what is unsuitable otherwise.
        "privacy_property": "Custom",
        "rumors_misinformation": "Custom",
        "ethics_morality": "Custom",
        "physical_mental_health": "Custom",
    },
)
