"""Policies: a verdict becomes an action. Pure; knows nothing about files, ledgers or guards.

A rule is a pair of thresholds on P(unsafe). Which rule counts for a verdict:

1. dead, unparseable, controversial: the surface's own action, else the policy's;
2. each category of the verdict has the rule of the most specific name that has one (the guard's own code, then
   the sub-category, then the scenario; for each name the surface's rule before the policy's), and the strictest
   action over all categories that have a rule counts;
3. where no category has a rule: the surface's thresholds, else the policy's.

Rules are never merged: what a rule does not name, it does not do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Final, NamedTuple

from pydantic import Field, StringConstraints, field_validator, model_validator

from schemas.base import Frozen
from schemas.items import Label
from schemas.taxonomy import find_scenario, find_subcategory
from schemas.verdicts import CONTROVERSIAL, Outcome, Verdict

PolicyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Threshold = Annotated[float, Field(ge=0, le=1)]


class Action(StrEnum):
    """The action that a platform should take, from mild to strict."""

    PASS = "pass"  # noqa: S105 - not a password
    REVIEW = "review"
    BLOCK = "block"

    @property
    def severity(self) -> int:
        """0 for pass, 1 for review, 2 for block."""
        return _SEVERITY[self]


_SEVERITY: Final = {Action.PASS: 0, Action.REVIEW: 1, Action.BLOCK: 2}


class Thresholds(Frozen):
    """From which P(unsafe) on there is a review or a block (inclusive); absent: never.

    A verdict with a label and without a score meets every threshold if it is unsafe and none if it is safe.
    """

    review: Threshold | None = None
    block: Threshold | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Thresholds:
        if self.review is not None and self.block is not None and self.review > self.block:
            raise ValueError(f"review ({self.review:g}) begins above block ({self.block:g}), so it would never happen")
        return self

    def act(self, verdict: Verdict) -> tuple[Action, float | None]:
        """The action on a scored verdict, and the threshold it met."""
        for action, threshold in ((Action.BLOCK, self.block), (Action.REVIEW, self.review)):
            unsafe, score = verdict.label is Label.UNSAFE, verdict.p_unsafe
            if threshold is not None and (unsafe if score is None else score >= threshold):
                return action, threshold
        return Action.PASS, None


class _Rules(Frozen):
    """The settings that a policy and each of its surfaces may have."""

    categories: dict[str, Thresholds] = Field(default_factory=dict)

    @field_validator("categories")
    @classmethod
    def _one_rule_per_category(cls, value: dict[str, Thresholds]) -> dict[str, Thresholds]:
        found: dict[str, Thresholds] = {}
        for name, rule in value.items():
            code = canonical(name)
            if code == CONTROVERSIAL:
                raise ValueError("controversial is no category: give it an action next to `categories`")
            if code in found:
                raise ValueError(f"{name} and another name here mean the same category {code}")
            found[code] = rule
        return found


class SurfaceRules(_Rules):
    """Settings that differ on one surface, such as comments; an absent one is as everywhere."""

    thresholds: Thresholds | None = None
    controversial: Action | None = None
    unparseable: Action | None = None
    dead: Action | None = None


class Policy(_Rules):
    """A policy: name, version and rules. One version never changes; another one gets another number."""

    policy: PolicyName
    version: int = Field(ge=1, le=2**31 - 1)
    description: str = ""
    thresholds: Thresholds
    controversial: Action = Action.REVIEW
    unparseable: Action = Action.REVIEW
    dead: Action = Action.REVIEW
    surfaces: dict[str, SurfaceRules] = Field(default_factory=dict)

    def foreign_categories(self) -> list[str]:
        """Category names that are in no taxonomy of ours: a guard's own codes, or slips of the pen."""
        rules: list[_Rules] = [self, *self.surfaces.values()]
        names = {name for rule in rules for name in rule.categories}
        return sorted(name for name in names if not (find_scenario(name) or find_subcategory(name)))


class Decision(NamedTuple):
    """A policy's decision on a verdict. `category` is the rule that decided, where it was one for a category."""

    action: Action
    reason: str
    category: str | None = None


def canonical(name: str) -> str:
    """The code of a scenario or sub-category by its code, English or Chinese name; any other name as it is."""
    found = find_scenario(name) or find_subcategory(name)
    return found.code if found else name


def surface_of(metadata: Mapping[str, object] | None, source: str) -> str:
    """The surface an item came from: "surface" in its metadata, else its source."""
    named = (metadata or {}).get("surface")
    return named if isinstance(named, str) and named else source


def decide(policy: Policy, verdict: Verdict, *, surface: str = "") -> Decision:
    """The action on a verdict, with its reason in words (never any text of the item)."""
    own = policy.surfaces.get(surface, SurfaceRules())
    if verdict.outcome is Outcome.DEAD:
        return Decision(own.dead or policy.dead, "nobody judged it: dead")
    if verdict.outcome is Outcome.UNPARSEABLE:
        return Decision(own.unparseable or policy.unparseable, "the guard's answer was unparseable")
    if CONTROVERSIAL in verdict.categories:
        action = own.controversial or policy.controversial
        return Decision(action, "controversial: unsafe only by the strict reading", CONTROVERSIAL)
    ruled = []
    for category in verdict.categories:
        rules = ((name, own.categories.get(name) or policy.categories.get(name)) for name in _names(category))
        if found := next(((name, rule) for name, rule in rules if rule), None):
            action, threshold = found[1].act(verdict)
            ruled.append(Decision(action, _reason(verdict, threshold, found[0]), found[0]))
    if ruled:
        return max(ruled, key=lambda decision: decision.action.severity)
    action, threshold = (own.thresholds or policy.thresholds).act(verdict)
    return Decision(action, _reason(verdict, threshold))


def _names(category: str) -> Iterator[str]:
    """The names a verdict's category can have a rule by, the most specific first."""
    code, _, scenario = category.rpartition(":")
    yield from (name for name in (category, code) if name)
    subcategory = find_subcategory(scenario) or find_subcategory(code)
    if subcategory:
        yield subcategory.code
        yield subcategory.scenario
    found = find_scenario(scenario)
    if found:
        yield found.code


def _reason(verdict: Verdict, threshold: float | None, category: str = "") -> str:
    score = f"p_unsafe {verdict.p_unsafe:.4f}" if verdict.p_unsafe is not None else f"{verdict.label} without a score"
    met = "below every threshold" if threshold is None else f"at or above {threshold:g}"
    return f"{category}: {score}, {met}" if category else f"{score}, {met}"
