"""A JSON array of any length, read an element at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import BinaryIO, Final, NamedTuple

from infra.errors import DataError

_CHUNK_BYTES: Final = 1 << 16
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_LONGEST_CUT: Final = 16
"""An error this near the end of the text read so far (in characters) may only mean that a token was cut."""


class Element(NamedTuple):
    """An element with its place, both counted from 1."""

    number: int
    line: int
    value: object


class ArrayReader:
    """Walks through the elements of one JSON array, holding one element and one chunk of text."""

    def __init__(self, stream: BinaryIO, label: str, max_chars: int) -> None:
        self._stream = stream
        self._label = label
        self._max_chars = max_chars
        self._decoder = json.JSONDecoder()
        self._text_of = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._line = 1
        self._number = 0
        self._ended = False

    def __iter__(self) -> Iterator[Element]:
        """The elements in order.

        Raises:
            DataError: the text is no JSON array in UTF-8, is cut short, or holds an element over the limit.
        """
        if self._next() != "[":
            raise self._error("a JSON array is expected")
        self._at += 1
        more = self._next() != "]"
        while more:
            self._number += 1
            self._next()
            line = self._line
            yield Element(self._number, line, self._value())
            more = self._comma()
        self._at += 1
        if self._next():
            raise self._error("there is more text after the end of the array")

    def _comma(self) -> bool:
        """Whether another element follows."""
        mark = self._next()
        if mark == "]":
            return False
        if mark == ",":
            self._at += 1
            if self._next() == "]":
                raise self._error("a comma before the closing bracket")
            return True
        if mark:
            raise self._error(f"a comma or the closing bracket is expected after element {self._number}")
        raise self._error(f"the file ends within the array, after element {self._number}")

    def _value(self) -> object:
        """The value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                ahead = error.pos - self._at
                if not self._is_cut(error) or not self._read():
                    raise self._broken(error.msg, self._at + ahead) from None
            except (RecursionError, ValueError) as error:
                raise self._error(f"element {self._number}: {error}") from None
            else:
                # A number that touches the end of what was read may go on beyond it.
                if end < len(self._text) or not self._read():
                    self._count_lines(end)
                    return value
            if len(self._text) - self._at > self._max_chars:
                raise self._error(f"element {self._number} is longer than {self._max_chars:,} characters")

    def _is_cut(self, error: JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_CUT

    def _broken(self, problem: str, position: int) -> DataError:
        if problem.startswith("Unterminated string") or position >= len(self._text.rstrip()):
            return self._error(f"the file ends within element {self._number}")
        self._count_lines(position)
        return self._error(f"element {self._number} is broken JSON: {problem}")

    def _next(self) -> str:
        """Go to the next character that is no white space; empty at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._count_lines(found.end() if found else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def _count_lines(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _read(self) -> bool:
        """Add more text behind what is not consumed yet; False at the end of the file.

        Reads as much again as there is, so that a long element is not decoded many times over.
        """
        if self._ended:
            return False
        kept = self._text[self._at :]
        data = self._stream.read(max(_CHUNK_BYTES, len(kept)))
        self._ended = not data
        try:
            self._text = kept + self._text_of.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            self._line += kept.count("\n") + error.object[: error.start].count(b"\n")
            raise self._error(f"not UTF-8 ({error.reason}); save the file as UTF-8") from None
        self._at = 0
        return not self._ended

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self._label}:{self._line}: {problem}")
