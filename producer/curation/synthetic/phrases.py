"""The written phrases: read once, checked against the taxonomy, split into what is trained on and what is held out.

Knows nothing about rows, seeds or files that users make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

from schemas.taxonomy import SCENARIOS, SubCategory

_HELD_OUT_EVERY: Final = 3


class Part(StrEnum):
    """Which phrases may be used: rows of `train` and of `held_out` share none, so that one tests the other."""

    ALL = "all"
    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Topic:
    """One sub-category's phrases: harmful aims, words of both sides, harmless aims, safe and harmful sentences."""

    kind: SubCategory
    scenario_zh: str
    behaviours: tuple[str, ...]
    words: tuple[str, ...]
    benign: tuple[str, ...]
    facts: tuple[str, ...]
    claims: tuple[str, ...]


@dataclass(frozen=True)
class Elements:
    """What a query is made of besides its aim; task types by name, each with ways to ask."""

    task_types: Mapping[str, tuple[str, ...]]
    places: tuple[str, ...]
    events: tuple[str, ...]
    settings: tuple[str, ...]


@cache
def topics(part: Part = Part.ALL) -> tuple[Topic, ...]:
    """All 39 sub-categories, in the taxonomy's order, with the phrases of a part."""
    found = []
    for scenario in SCENARIOS:
        said = _read(f"phrases/{scenario.code}.yaml")
        for kind in scenario.subcategories:
            own = {name: _of_part(phrases, part) for name, phrases in said[kind.code].items()}
            found.append(Topic(kind, scenario.name_zh, **own))
    return tuple(found)


@cache
def elements() -> Elements:
    """Task types, places, events and settings."""
    said = _read("elements.yaml")
    ways = {name: tuple(asked) for name, asked in said.pop("task_types").items()}
    return Elements(task_types=ways, **{name: tuple(phrases) for name, phrases in said.items()})


@cache
def frames(part: Part = Part.ALL) -> Mapping[str, tuple[str, ...]]:
    """The talk around aims and sentences, by its purpose."""
    return {name: _of_part(phrases, part) for name, phrases in _read("frames.yaml").items()}


def _of_part(phrases: list[str], part: Part) -> tuple[str, ...]:
    """Every third phrase is held out; an empty one says that nothing may stand there, and belongs to both."""
    held_out = {at for at in range(len(phrases)) if at % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1}
    if part is Part.ALL:
        return tuple(phrases)
    return tuple(
        phrase for at, phrase in enumerate(phrases) if not phrase or (at in held_out) == (part is Part.HELD_OUT)
    )


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((files("producer.curation.synthetic") / name).read_text(encoding="utf-8"))
    return content
