"""Examines machine, servers, settings and fleet, and says what is wrong, why it matters and what to do.

A check is a function that yields findings; `examination` runs them all. Nothing here changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """An error stops work or endangers it; a warning costs something or will."""

    ERROR = "error"
    WARNING = "warning"
    GOOD = "ok"


@dataclass(frozen=True)
class Finding:
    """One fact. `check` names what was looked at; `do` is a command wherever one helps."""

    check: str
    level: Level
    what: str
    why: str = ""
    do: str = ""


def good(check: str, what: str) -> Finding:
    """A finding that asks for nothing."""
    return Finding(check, Level.GOOD, what)


def warning(check: str, what: str, *, why: str, do: str) -> Finding:
    """A finding that costs something, or will."""
    return Finding(check, Level.WARNING, what, why, do)


def error(check: str, what: str, *, why: str, do: str) -> Finding:
    """A finding that stops work, or endangers it."""
    return Finding(check, Level.ERROR, what, why, do)


def graded(check: str, amount: float, what: str, *, few: float, enough: float, why: str, do: str) -> Finding:
    """A finding on an amount of which there may be enough, little (a warning), or too little (an error)."""
    if amount >= enough:
        return good(check, what)
    return (error if amount < few else warning)(check, what, why=why, do=do)
