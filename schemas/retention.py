"""How long user text is kept."""

from __future__ import annotations

from enum import StrEnum


class Retention(StrEnum):
    """What stays of an item's text once its verdict is settled: everything, a hash of it, nothing."""

    FULL = "full"
    HASH = "hash"
    NONE = "none"

    @property
    def scrubs(self) -> bool:
        """Whether the text goes."""
        return self is not Retention.FULL
