"""Verdicts: what a guard said of an item, by which exact guard, and how it came about."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final

from pydantic import Field, model_validator

from schemas.base import ADDED, Frozen, Shared
from schemas.guards import Mode
from schemas.items import Label

CONTROVERSIAL: Final = "controversial"
"""The category that marks a verdict as unsafe by the strict reading and safe by the loose one."""


class Outcome(StrEnum):
    """The end of an item. Exactly one per item, run and iteration."""

    SCORED = "scored"
    UNPARSEABLE = "unparseable"
    DEAD = "dead"


class CategoriesBy(StrEnum):
    """How the categories of a verdict were obtained."""

    GUARD = "guard"
    """The guard wrote them, or its labels carry them."""
    FORCED_CHOICE = "forced_choice"
    """Its authors' categories, compared behind the label that it gave: the likeliest one."""
    EXPERIMENT = "experiment"
    """A forced choice between categories that the guard was not trained to name."""


class Verdict(Shared):
    """The settled end of one item: scored with a label, unparseable, or dead with a reason.

    `p_unsafe` and `label_mass` lie in [0, 1] and are absent where the mode gives none.
    `raw` is the guard's own text in generate mode; `windows` counts the prompts it took: the overlapping
    pieces of a long content, times the policies of a guard that is asked about one at a time (the worst wins).
    `categories` hold the guard's own codes, the project's scenario next to them where there is one
    ("S10:hate_abuse"); "controversial" among them: unsafe by the strict reading, safe by the loose one.
    `categories_by`: how they were obtained; None: by the guard, or there are none.
    `cached`: the device gave these answers before, to the same prompts; it did nothing for this item.
    """

    seq: int = Field(ge=0)
    outcome: Outcome
    label: Label | None = None
    p_unsafe: float | None = Field(default=None, ge=0, le=1)
    label_mass: float | None = Field(default=None, ge=0, le=1)
    categories: tuple[str, ...] = ()
    reason: str | None = None
    raw: str | None = None
    prompt_tokens: int = Field(default=0, ge=0)
    windows: int = Field(default=1, ge=1)
    cached: bool = Field(default=False, **ADDED)
    categories_by: CategoriesBy | None = Field(default=None, **ADDED)

    @model_validator(mode="after")
    def _outcome_matches_fields(self) -> Verdict:
        if (self.outcome is Outcome.SCORED) != (self.label is not None):
            raise ValueError("a scored verdict has a label, any other has none")
        if self.outcome is Outcome.DEAD and not self.reason:
            raise ValueError("a dead verdict needs a reason")
        return self


class Timings(Shared):
    """The stages of a chunk's time, in seconds."""

    queue_s: float = 0.0
    render_s: float = 0.0
    device_s: float = 0.0


class Spent(Shared):
    """The cost of a chunk: seconds of a device (of each, where a model is spread over several), and tokens.

    A batch's time is shared by its prompts in proportion to the tokens that had to run. `prompt_tokens` were read,
    `new_tokens` written. What a cache answered costs nothing. `device` is the hardware's own name.
    """

    device: str = ""
    device_s: float = Field(default=0.0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    new_tokens: int = Field(default=0, ge=0)


class Fingerprint(Frozen):
    """The exact guard behind a verdict. Two verdicts compare only if their digests are equal."""

    guard: str
    model: str
    revision: str
    prompt: str
    mode: Mode
    dtype: str
    engine: str
    adapter: str = ""

    @property
    def digest(self) -> str:
        """16 hex characters over all fields."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()
