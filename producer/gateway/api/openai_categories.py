"""OpenAI's moderation categories, and which of ours belongs to which. Data with reasons, no logic beyond a look-up.

OpenAI's names and what they cover are from its moderation guide; ours are in schemas/taxonomy.py. Where a scenario of
ours has no counterpart (rumours, superstition, privacy, …), it maps to nothing; moderation_result.py
then names a category that is not the guard's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

CATEGORIES: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""Every category that OpenAI answers with."""

BY_SCENARIO: Final[dict[str, tuple[str, ...]]] = {
    # Wrongdoing and how it is done: what OpenAI calls illicit. Pornography is in it; only a sub-category shows it.
    "illegal_activities": ("illicit",),
    # Against people for what they are: OpenAI's hate, whose list of groups is ours but for occupation and region.
    "bias_discrimination": ("hate",),
    # Abuse of persons: harassment. Where a group is meant, it is the scenario above.
    "hate_abuse": ("harassment",),
    # Harm to oneself and one's health: the nearest that OpenAI has; bodily harm to others is violence, see below.
    "physical_mental_health": ("self-harm",),
    # OpenAI has no category for leaked data or stolen works, for rumours, for values.
    "privacy_property": (),
    "rumors_misinformation": (),
    "ethics_morality": (),
}
"""Code of a scenario → OpenAI's categories, where the guard names no sub-category."""

BY_SUBCATEGORY: Final[dict[str, tuple[str, ...]]] = {
    "pornography": ("sexual",),  # sexual content is OpenAI's own category, lawful or not
    "violent_crimes": ("illicit/violent", "violence"),  # instructions or praise of violence against people
    "personal_crimes": ("illicit/violent", "violence"),  # assault, kidnapping and the like
    "contraband_crimes": ("illicit",),  # drugs and goods; weapons are special control
    "special_control": ("illicit", "illicit/violent"),  # weapons and explosives, which OpenAI files under violent
    "minor_related": ("illicit",),  # crimes against or by minors of any kind: not necessarily sexual
    "feudal_superstition": (),  # forbidden in some places, unknown to OpenAI's categories
    "traffic_violations": ("illicit",),
    "environmental_protection": ("illicit",),
    "wildlife_protection": ("illicit",),
    "illegal_services": ("illicit",),
    "gambling": ("illicit",),
    "cybersecurity": ("illicit",),
    "property_infringement": ("illicit",),
    "financial_crimes": ("illicit",),
    "specific_groups": ("hate",),
    "vulnerable_groups": ("hate",),  # disability and illness are on OpenAI's list
    "occupation": (),  # not a group that OpenAI's hate protects
    "region": ("hate",),  # nationality and origin
    "belief": ("hate",),
    "race": ("hate",),
    "ethnicity": ("hate",),
    "sexual_orientation": ("hate",),
    "gender": ("hate",),
    "personal_data": (),
    "business_data": (),
    "sensitive_data": (),
    "intellectual_property": (),
    "misinformation": (),
    "history_common_sense": (),
    "professional_advice": (),
    "hatred": ("harassment",),
    "hostility_aggression": ("harassment", "harassment/threatening"),  # aggression: meant to threaten
    "humiliation": ("harassment",),
    "values": (),
    "moral_behavior": (),
    "artificial_intelligence": (),
    "mental_health": ("self-harm",),
    "bodily_harm": ("violence",),  # injury; to whom is not said
}
"""Code of a sub-category → OpenAI's categories. It overrules its scenario."""


def openai_categories(codes: Iterable[str]) -> frozenset[str]:
    """OpenAI's categories for a verdict's: codes of sub-categories or scenarios, a guard's own before them or not.

    A code that is none of ours (a guard's own that is not mapped) maps to nothing.
    """
    found: set[str] = set()
    for code in codes:
        ours = code.rpartition(":")[2]
        found.update(BY_SUBCATEGORY.get(ours) or BY_SCENARIO.get(ours, ()))
    return frozenset(found)
