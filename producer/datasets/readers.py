"""One file → its rows, undecoded as far as possible, so that skipped rows cost little.

JSON here: lines, an array of any length (an element at a time), objects over several lines, a list within an object.
Tables (CSV, workbooks, Parquet, Arrow) are read by tables.py; both take bytes from streams.py.
"""

from __future__ import annotations

import codecs
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from json import JSONDecodeError
from typing import BinaryIO, Final

from infra.errors import DataError
from producer.datasets import tables
from producer.datasets.records import COLUMNS, TEXT_COLUMNS
from producer.datasets.rows import MAX_ROW_BYTES, RawRow, RowError, normal_name
from producer.datasets.sources import DataFile, is_of_split
from producer.datasets.streams import BUFFER_BYTES, raw_bytes, utf8_bytes
from schemas.reading import AS_IT_IS, Reading

_BOM: Final = b"\xef\xbb\xbf"
_ARROW: Final = (b"ARROW1", b"\xff\xff\xff\xff")
_BROKEN: Final = (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What the standard library raises of a file that is not what it says, or is cut short."""


def read_rows(file: DataFile, reading: Reading = AS_IT_IS) -> Iterator[RawRow]:
    """The rows of a file, one after the other.

    Raises:
        DataError: the file as a whole cannot be read: permission, encoding, cut short, changed, not its format.
    """
    last = "at its start"
    try:
        for raw in _rows_of(file, reading):
            last = f"after {raw.where}"
            yield raw
    except _BROKEN as error:
        problem = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DataError(f"{file.label}: cannot be read ({last}): {problem}") from error


_Reader = Callable[[DataFile, Reading], Iterator[RawRow]]


def _rows_of(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    file.check_unchanged()
    kind = _format_of(file, reading)
    readers: dict[str, _Reader] = {
        **{"jsonl": _read_lines, "json": _read_array, "objects": _read_objects},
        **{"csv": tables.read_csv, "tsv": tables.read_csv, "xlsx": tables.read_workbook},
        **{"parquet": tables.read_parquet, "arrow": tables.read_arrow},
    }
    if reading.split is not None and kind not in ("xlsx", "objects") and not is_of_split(file, reading.split):
        raise DataError(f"{file.label}: no split {reading.split} in it")
    yield from readers[kind](file, reading)


def _format_of(file: DataFile, reading: Reading) -> str:
    """The format: by content where the content shows it, else as the name says."""
    with raw_bytes(file) as stream:
        magic = stream.read(8)
    if magic.startswith(b"PAR1"):
        return "parquet"
    if magic.startswith(_ARROW):
        return "arrow"
    if file.kind in ("parquet", "arrow"):
        raise DataError(f"{file.label}: not {'a Parquet' if file.kind == 'parquet' else 'an Arrow'} file")
    if magic.startswith(b"PK\x03\x04"):
        if file.kind != "xlsx":
            raise DataError(f"{file.label}: a zip archive or a workbook; its name should end in .zip or .xlsx")
        return "xlsx"
    if file.kind == "xlsx":
        raise DataError(f"{file.label}: not an .xlsx workbook")
    return _format_of_text(file, reading)


def _format_of_text(file: DataFile, reading: Reading) -> str:
    with utf8_bytes(file, reading.encoding) as stream:
        head = stream.read(BUFFER_BYTES)
        start = head.removeprefix(_BOM).lstrip()
        while head and not start:
            head = stream.read(BUFFER_BYTES)
            start = head.lstrip()
    if b"\x00" in start[:4]:
        raise DataError(f"{file.label}:1: binary, or text in an encoding that is not known; --encoding names it")
    if file.kind in ("csv", "tsv", "jsonl"):
        return file.kind
    if start.startswith(b"["):
        return "json"
    if file.kind == "stream" and start[:1] not in (b"{", b"") and tables.looks_like_csv(start):
        return "csv"
    return "objects" if _spans_lines(start) else "jsonl"


def _spans_lines(start: bytes) -> bool:
    """True where a file is no sequence of lines of JSON: an object over several lines, or a list within an object."""
    line, newline, others = start.partition(b"\n")
    if not line.startswith(b"{"):
        return False
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        # A line that is broken is a bad row; one that ends open goes on in the next, or beyond what was read.
        return line.rstrip().endswith((b"{", b"[", b",", b":")) or (not newline and len(start) >= BUFFER_BYTES // 2)
    if others.strip() and _text_in(first):  # lines of rows, whatever lists they hold
        return False
    return any(_is_list_of_rows(name, value) for name, value in first.items())


def _text_in(row: Mapping[str, object]) -> str | None:
    """The name of a text in a row."""
    return next((name for name, value in row.items() if value and normal_name(name) in TEXT_COLUMNS), None)


def _is_list_of_rows(name: str, value: object) -> bool:
    return normal_name(name) not in COLUMNS and isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _read_array(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    """A row per element."""
    with utf8_bytes(file, reading.encoding) as stream:
        for number, line, value in JsonReader(stream, file.label, MAX_ROW_BYTES).elements():
            yield RawRow(f"{file.label}: element {number} (line {line})", number, value)


def _read_objects(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    """A row per object, or per element of the list that an object holds."""
    wanted = None if reading.split is None or is_of_split(file, reading.split) else reading.split
    with utf8_bytes(file, reading.encoding) as stream:
        for number, line, value in JsonReader(stream, file.label, MAX_ROW_BYTES).objects(wanted):
            yield RawRow(f"{file.label}: element {number} (line {line})", number, value)


def _read_lines(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    """A row per line that is not blank."""
    number = 0
    with utf8_bytes(file, reading.encoding) as stream:
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(_BOM)
            content: object = line
            if len(line) > MAX_ROW_BYTES:
                content = RowError(f"a line of more than {MAX_ROW_BYTES:,} bytes")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(BUFFER_BYTES)
            elif not line or line.isspace():
                continue
            yield RawRow(f"{file.label}:{number}", number, content)


_CHUNK_BYTES: Final = 1 << 16
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_LONGEST_CUT: Final = 16
"""An error this near the end of the text read so far (in characters) may only mean that a token was cut."""


class JsonReader:
    """Walks through JSON text, holding one value and one chunk of text."""

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

    def elements(self) -> Iterator[tuple[int, int, object]]:
        """The elements of the one array that the text is, in order, each after its number and its line (from 1)."""
        if self._next() != "[":
            raise self._error("a JSON array is expected")
        yield from self._array()
        if self._next():
            raise self._error("there is more text after the end of the array")

    def objects(self, wanted: str | None) -> Iterator[tuple[int, int, object]]:
        """The objects that the text consists of, or the elements of a list of objects within such an object.

        Where an object holds several such lists, `wanted` is the name of one.
        """
        while (mark := self._next()) == "{":
            yield from self._object(wanted)
        if mark:
            raise self._error("an object is expected")

    def _object(self, wanted: str | None) -> Iterator[tuple[int, int, object]]:
        """The object that begins here as a row, unless one of its values is a list of rows: then those.

        An object that holds both a text and such a list could be either: nothing is guessed.
        """
        line = self._line
        row: dict[str, object] = {}
        lists: list[str] = []
        for name in self._names():
            if self._next() != "[" or normal_name(name) in COLUMNS or not self._opens_rows():
                row[name] = self._value()
                continue
            lists.append(name)
            if wanted is None and len(lists) > 1:
                raise self._error(f"rows in {' and '.join(lists)}; choose with --split {lists[0]}")
            for found in self._array():
                if wanted in (None, name):
                    yield found
        self._require_clear(row, lists, wanted)
        if not lists:
            self._number += 1
            yield self._number, line, row

    def _require_clear(self, row: Mapping[str, object], lists: Sequence[str], wanted: str | None) -> None:
        """See that an object has the wanted list, and that without a wish it is either a row or a list of rows."""
        if wanted is not None and wanted not in lists:
            raise self._error(f"no split {wanted} in it; found {', '.join(lists) or 'none'}")
        if wanted is None and lists and (text := _text_in(row)):
            raise self._error(
                f"a text ({text}) and rows ({lists[0]}) in one object: --split {lists[0]} takes the rows; "
                "a file of lines, each a row, is read as such if it is called .jsonl"
            )

    def _names(self) -> Iterator[str]:
        """The names of the object that begins here, each when its value is next; the caller reads that."""
        self._at += 1
        more = self._next() != "}"
        while more:
            name = self._value()
            if not isinstance(name, str) or self._next() != ":":
                raise self._error("a name and a colon are expected")
            self._at += 1
            yield name
            mark = self._next()
            more = mark == ","
            if more:
                self._at += 1
                self._next()
            elif mark != "}":
                raise self._error("a comma or the closing brace is expected" if mark else "the file ends in an object")
        self._at += 1

    def _opens_rows(self) -> bool:
        """True if the array that begins here holds an object first."""
        while True:
            found = _SPACE.match(self._text, self._at + 1)
            end = found.end() if found else self._at + 1
            if end < len(self._text):
                return self._text[end] == "{"
            if not self._read():
                return False

    def _array(self) -> Iterator[tuple[int, int, object]]:
        """The elements of the array that begins here."""
        self._at += 1
        more = self._next() != "]"
        while more:
            self._number += 1
            self._next()
            yield self._number, self._line, self._value()
            mark = self._next()
            more = mark == ","
            if more:
                self._at += 1
                if self._next() == "]":
                    raise self._error("a comma before the closing bracket")
            elif not mark:
                raise self._error(f"the file ends within the array, after element {self._number}")
            elif mark != "]":
                raise self._error(f"a comma or the closing bracket is expected after element {self._number}")
        self._at += 1

    def _value(self) -> object:
        """The value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                ahead = error.pos - self._at
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_CUT
                if not is_cut or not self._read():
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
            raise self._error(f"not UTF-8 ({error.reason}); save the file as UTF-8, or name its --encoding") from None
        self._at = 0
        return not self._ended

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self._label}:{self._line}: {problem}")
