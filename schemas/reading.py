"""A person's word on how to read a data set, where its names and labels are not those that are known."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from schemas.base import ADDED, Shared
from schemas.items import Label

ANY_OTHER: Final = "*"
"""As a label's word: every word that is neither named nor known, and no word at all."""
_OPPOSITES: Final = (("0", "1"), ("false", "true"), ("no", "yes"), ("n", "y"), ("否", "是"))


class Ids(StrEnum):
    """What becomes an item's id."""

    KEEP = "keep"
    """The row's own id; one that came before makes the row a bad one."""
    ROW = "row"
    """File and row number, whatever ids there are."""
    HASH = "hash"
    """A hash of what is judged: the same text again is the same item, and is judged once."""


class Reading(Shared):
    """Which column is which field, which words mean which label, which files are read and in which encoding.

    `fields` maps a field of an item to a column, or to "" for a field that is to be left out. `labels` maps words, in
    small letters, to labels. `split` names the part of a set, `encoding` a codec of Python.
    """

    fields: dict[str, str] = Field(default_factory=dict, **ADDED)
    labels: dict[str, Label] = Field(default_factory=dict, **ADDED)
    ids: Ids = Ids.KEEP
    split: str | None = Field(default=None, **ADDED)
    encoding: str | None = Field(default=None, **ADDED)

    def label_of(self, word: str) -> Label | None:
        """The label that a word was said to mean. Where 1 is named, 0 is its opposite; likewise true, yes and 是."""
        if (named := self.labels.get(word)) is not None:
            return named
        for pair in _OPPOSITES:
            if word in pair and (named := self.labels.get(pair[1 - pair.index(word)])) is not None:
                return named.opposite
        return None


AS_IT_IS: Final = Reading()
"""Nothing said: known names and words."""
