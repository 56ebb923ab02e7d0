"""A row as a reader found it, not yet an item, and what is said of one that is none."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pydantic_core import from_json

MAX_ROW_BYTES: Final = 4 << 20
"""A longer line is refused unread, a longer array element too (there, in characters). Eight times the longest item."""
_MAX_PROBLEM_CHARS: Final = 300


class RowError(ValueError):
    """A row that is no item; the message says why, in one short line.

    `kind` is the same for rows with the same fault, `switch` the option that would help, if one would.
    """

    def __init__(self, problem: str, *, kind: str = "", switch: str = "") -> None:
        self.kind = kind or problem
        self.switch = _shown(switch)
        super().__init__(_shown(problem))


def _shown(text: str) -> str:
    """A text short enough for a line; what it quotes of a row may be unprintable or no valid text at all."""
    if len(text) > _MAX_PROBLEM_CHARS:
        text = text[:_MAX_PROBLEM_CHARS] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def decode_line(line: bytes) -> object:
    """The JSON value on a line, or RowError."""
    try:
        return from_json(line)
    except ValueError as error:
        problem = "broken JSON: " + str(error).replace(" at line 1 column", " at column")
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        at = f"byte {line[wrong.start]:#04x} at column {wrong.start + 1}"
        raise RowError(
            f"not UTF-8 ({at}); save the file as UTF-8", kind="not UTF-8", switch="--encoding gb18030, or as it may be"
        ) from None
    raise RowError(problem, kind="broken JSON")


def normal_name(column: str) -> str:
    """A column's name as names are compared."""
    return re.sub(r"[\s-]+", "_", column.strip().lower())


class RawRow(NamedTuple):
    """A row as found: `number` is its line, element or row in the file, from 1.

    `content` is the bytes of a JSON line, the value where the format decodes by itself, or a RowError.
    """

    where: str
    number: int
    content: object

    def value(self) -> object:
        """The content, decoded, or RowError."""
        if isinstance(self.content, RowError):
            raise self.content
        return decode_line(self.content) if isinstance(self.content, bytes) else self.content
