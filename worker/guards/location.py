"""Where a checkpoint lies: a folder, a hub id, or BASE+ADAPTER, each of which is one of them. Opens no file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Location(NamedTuple):
    """The parts of a location as they are written; `adapter` is None where there is none."""

    base: str
    adapter: str | None = None


def parts_of(location: str) -> Location:
    """Return the base and the adapter that a location names. A folder whose own name has a plus is a folder."""
    if "+" not in location or is_folder(location):
        return Location(location)
    pairs = [Location(location[:at], location[at + 1 :]) for at, letter in enumerate(location) if letter == "+"]
    there = [pair for pair in pairs if is_folder(pair.base) and is_folder(pair.adapter or "")]
    either = [pair for pair in pairs if is_folder(pair.base) or is_folder(pair.adapter or "")]
    return (there or either or pairs)[-1]


def absolute_location(location: str) -> str:
    """The location with folders that are here by their whole paths, which hold in another working folder too."""
    return "+".join(
        str(Path(part).expanduser().resolve()) if part and Path(part).expanduser().exists() else part
        for part in parts_of(location)
        if part is not None
    )


def is_folder(part: str) -> bool:
    """True if this part of a location is a folder on this machine."""
    return bool(part) and Path(part).expanduser().is_dir()
