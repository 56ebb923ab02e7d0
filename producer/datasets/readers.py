"""One file → its rows, undecoded as far as possible, so that skipped rows cost little.

A JSON array of any length is read an element at a time.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from infra.errors import DataError
from producer.datasets.records import COLUMNS, TEXT_COLUMNS, RowError, decode_line
from producer.datasets.sources import DataFile

if TYPE_CHECKING:
    import pyarrow

MAX_ROW_BYTES: Final = 4 << 20
"""A longer line is refused unread, a longer array element too (there, in characters). Eight times the longest item."""

_BUFFER_BYTES: Final = 1 << 18
_PARQUET_BATCH_ROWS: Final = 256
_BOM: Final = b"\xef\xbb\xbf"


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


def read_rows(file: DataFile) -> Iterator[RawRow]:
    """The rows of a file, one after the other.

    Raises:
        DataError: the file as a whole cannot be read: permission, encoding, cut short, changed, not its format.
    """
    last = "at its start"
    try:
        for raw in _rows_of(file):
            last = f"after {raw.where}"
            yield raw
    except (OSError, EOFError, zlib.error) as error:
        problem = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DataError(f"{file.label}: cannot be read ({last}): {problem}") from error


def _rows_of(file: DataFile) -> Iterator[RawRow]:
    file.check_unchanged()
    kind = _format_of(file)
    if kind == "parquet":
        yield from _read_parquet(file)
        return
    with _plain_bytes(file.path) as stream:
        if kind == "jsonl":
            yield from _read_lines(stream, file.label)
            return
        for number, line, value in ArrayReader(stream, file.label, MAX_ROW_BYTES):
            yield RawRow(f"{file.label}: element {number} (line {line})", number, value)


@contextmanager
def _plain_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped where they are zipped, whatever its name says."""
    with path.open("rb", buffering=_BUFFER_BYTES) as raw:
        is_zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not is_zipped:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as unzipped, io.BufferedReader(unzipped, _BUFFER_BYTES) as plain:
            yield plain


def _format_of(file: DataFile) -> str:
    """Json (an array), jsonl or parquet: by content; only a name that says JSONL or Parquet is taken at its word."""
    with _plain_bytes(file.path) as stream:
        head = stream.read(_BUFFER_BYTES)
        start = head.removeprefix(_BOM).lstrip()
        while head and not start:
            head = stream.read(_BUFFER_BYTES)
            start = head.lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    if file.kind == "parquet":
        raise DataError(f"{file.label}: not a Parquet file")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in start[:4]:
        raise DataError(f"{file.label}:1: UTF-16, UTF-32 or binary; save the file as UTF-8")
    if file.kind == "jsonl":
        return "jsonl"
    if start.startswith(b"["):
        return "json"
    if start.startswith((b"{\n", b"{\r")):
        raise DataError(
            f"{file.label}:1: an object over several lines; a JSON array of objects, or one object a line, is expected"
        )
    return "jsonl"


def _read_lines(stream: BinaryIO, label: str) -> Iterator[RawRow]:
    """A row per line that is not blank."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        content: object = line
        if len(line) > MAX_ROW_BYTES:
            content = RowError(f"a line of more than {MAX_ROW_BYTES:,} bytes")
            while line and not line.endswith(b"\n"):
                line = stream.readline(_BUFFER_BYTES)
        elif not line or line.isspace():
            continue
        yield RawRow(f"{label}:{number}", number, content)


def _read_parquet(file: DataFile) -> Iterator[RawRow]:
    """A row per table row, of the columns we know."""
    try:
        import pyarrow  # noqa: PLC0415 (an extra)
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise DataError(f"{file.label}: Parquet needs pyarrow: pip install 'libra-fleet[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if not set(TEXT_COLUMNS).intersection(names):
                wanted = ", ".join(sorted(TEXT_COLUMNS))
                listed = (", ".join(names[:8]) or "none") + (" and more" if len(names) > 8 else "")
                raise DataError(f"{file.label}: no column with the text (one of {wanted}); found {listed}")
            columns = [name for name in names if name in COLUMNS]
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=columns):
                for content in _batch_rows(batch):
                    number += 1
                    yield RawRow(f"{file.label}: row {number}", number, content)
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{file.label}: not readable as Parquet: {error}") from error


def _batch_rows(batch: pyarrow.RecordBatch) -> Sequence[object]:
    """The rows; where one is not UTF-8, one by one."""
    try:
        rows: list[object] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [RowError(f"not UTF-8 ({error.reason})")]
        return [row for at in range(batch.num_rows) for row in _batch_rows(batch.slice(at, 1))]
    return rows


_CHUNK_BYTES: Final = 1 << 16
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_LONGEST_CUT: Final = 16
"""An error this near the end of the text read so far (in characters) may only mean that a token was cut."""


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

    def __iter__(self) -> Iterator[tuple[int, int, object]]:
        """The elements in order, each after its number and its line (from 1)."""
        if self._next() != "[":
            raise self._error("a JSON array is expected")
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
        if self._next():
            raise self._error("there is more text after the end of the array")

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
            raise self._error(f"not UTF-8 ({error.reason}); save the file as UTF-8") from None
        self._at = 0
        return not self._ended

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self._label}:{self._line}: {problem}")
