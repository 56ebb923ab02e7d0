"""The retention of user text."""

from __future__ import annotations

from enum import StrEnum


class Retention(StrEnum):
    """The part of an item's text that stays once its verdict is settled: everything, a hash of it, nothing."""

    FULL = "full"
    HASH = "hash"
    NONE = "none"

    @property
    def scrubs(self) -> bool:
        """True if the text is removed."""
        return self is not Retention.FULL
