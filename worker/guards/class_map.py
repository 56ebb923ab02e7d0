"""What the classes of somebody's classifier mean: guard.yaml (or guard.json) beside its weights. Torch-free.

labels:                     # a class of config.json's id2label, by name or number
  LABEL_0: safe
  LABEL_1: unsafe           # unsafe, and no more is said
  LABEL_2: gambling         # unsafe, of a category: one of the benchmark's, or any word of yours
  LABEL_3: {category: hate_abuse, threshold: 0.3}
multi_label: true           # each class has a sigmoid; not given: as config.json says
threshold: 0.5              # from which on the unsafe classes together, or each of several, count
kinds: [prompt, response]   # what it may judge; not given: a text, a prompt, a response, the response of a pair
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field, ValidationError, field_validator

from infra.errors import GuardError
from schemas.base import Frozen
from schemas.items import Kind
from schemas.taxonomy import find_scenario, find_subcategory

NAMES: Final = ("guard.yaml", "guard.yml", "guard.json")
LONGEST: Final = 100
"""Characters of a category."""
_SAFE, _UNSAFE = "safe", "unsafe"


class ClassMeaning(Frozen):
    """One class: `category` is "safe", "unsafe", or what an unsafe text of it is called."""

    category: str = Field(min_length=1, max_length=LONGEST, pattern=r"^[^,\x00]+$")
    threshold: float | None = Field(default=None, ge=0, lt=1)

    @property
    def is_safe(self) -> bool:
        """True for a class that means safe."""
        return self.category == _SAFE

    def code(self, label: str) -> str:
        """The category as verdicts have it: with the code of the benchmark's own, if it is one; "" for plain unsafe."""
        if self.category in (_SAFE, _UNSAFE):
            return ""
        known = find_subcategory(self.category) or find_scenario(self.category)
        return f"{label}:{known.code}" if known else self.category


class ClassMap(Frozen):
    """The whole file."""

    labels: dict[str, ClassMeaning] = Field(min_length=1)
    multi_label: bool | None = None
    threshold: float = Field(default=0.5, ge=0, lt=1)
    kinds: tuple[Kind, ...] = (Kind.PROMPT, Kind.RESPONSE, Kind.PAIR)

    @field_validator("labels", mode="before")
    @classmethod
    def _in_full(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {str(label): {"category": said} if isinstance(said, str) else said for label, said in value.items()}

    @field_validator("kinds")
    @classmethod
    def _judged_here(cls, value: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if Kind.MESSAGES in value:
            raise ValueError("a classifier reads one text; conversations (messages) cannot be put to it")
        return value


def read_class_map(folder: Path) -> ClassMap | None:
    """The folder's map, or None where it has none.

    Raises:
        GuardError: there are several, or it is not of this form; the message names the place and no more.
    """
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if not found:
        return None
    path = found[0]
    if len(found) > 1:
        raise GuardError(f"{folder} holds {' and '.join(one.name for one in found)}; keep one of them")
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        # By way of JSON, from which a strict model takes lists for tuples and words for enumerations.
        return ClassMap.model_validate_json(json.dumps(content))
    except ValidationError as error:
        detail = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, detail["loc"])) or "the file"
        raise GuardError(f"{path}: {place}: {detail['msg'].removeprefix('Value error, ')}") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise GuardError(f"{path} cannot be read as YAML or JSON: {type(error).__name__}") from error
