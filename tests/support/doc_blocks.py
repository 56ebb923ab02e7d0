"""Reads a documentation page's blocks, so that a test does what the page says and compares what it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LEFT_OUT: Final = "…"


class Block(NamedTuple):
    """A fenced block."""

    language: str
    body: str


class Command(NamedTuple):
    """A command of a console block, with what the page shows that it prints."""

    line: str
    printed: str


def blocks(page: Path) -> list[Block]:
    """A page's blocks in their order."""
    return [Block(*found) for found in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(block: Block) -> list[Command]:
    """The commands of a console block; one goes on behind a backslash at a line's end, and within quotes."""
    found: list[Command] = []
    for line in block.body.splitlines():
        last = found[-1] if found else Command("", "")
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ "), ""))
        elif last.line.endswith("\\"):
            found[-1] = last._replace(line=last.line.removesuffix("\\") + line.strip())
        elif last.line.count("'") % 2:
            found[-1] = last._replace(line=f"{last.line}\n{line}")
        elif found:
            found[-1] = last._replace(printed=f"{last.printed}{line}\n")
    return found


def require_shown(shown: str, printed: str) -> None:
    """Fail unless the parts of what a page shows, between the places where it leaves something out, were printed."""
    rest = printed
    for part in filter(None, (part.strip() for part in shown.split(_LEFT_OUT))):
        _, found, rest = rest.partition(part)
        assert found == part, f"the page shows {part!r}, which was not printed in {printed!r}"
