"""One file → its rows, undecoded as far as possible, so that rows nobody wants cost little."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from infra.errors import DataError
from producer.datasets.arrays import ArrayReader
from producer.datasets.records import COLUMNS, TEXT_COLUMNS, RowError
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


class _Format(Enum):
    ARRAY = auto()
    LINES = auto()
    PARQUET = auto()


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
    if kind is _Format.PARQUET:
        yield from _read_parquet(file)
        return
    with _plain_bytes(file.path) as stream:
        if kind is _Format.LINES:
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


def _format_of(file: DataFile) -> _Format:
    """By content; only a name that says JSONL or Parquet is taken at its word."""
    with _plain_bytes(file.path) as stream:
        head = stream.read(_BUFFER_BYTES)
        start = head.removeprefix(_BOM).lstrip()
        while head and not start:
            head = stream.read(_BUFFER_BYTES)
            start = head.lstrip()
    if start.startswith(b"PAR1"):
        return _Format.PARQUET
    if file.kind == "parquet":
        raise DataError(f"{file.label}: not a Parquet file")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in start[:4]:
        raise DataError(f"{file.label}:1: UTF-16, UTF-32 or binary; save the file as UTF-8")
    if file.kind == "jsonl":
        return _Format.LINES
    if start.startswith(b"["):
        return _Format.ARRAY
    if start.startswith((b"{\n", b"{\r")):
        raise DataError(
            f"{file.label}:1: an object over several lines; a JSON array of objects, or one object a line, is expected"
        )
    return _Format.LINES


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
            if not TEXT_COLUMNS.intersection(names):
                wanted = ", ".join(sorted(TEXT_COLUMNS))
                raise DataError(f"{file.label}: no column with the text (one of {wanted}); found {_listed(names)}")
            columns = [name for name in names if name in COLUMNS]
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=columns):
                for content in _batch_rows(batch):
                    number += 1
                    yield RawRow(f"{file.label}: row {number}", number, content)
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{file.label}: not readable as Parquet: {error}") from error


def _batch_rows(batch: pyarrow.RecordBatch) -> Iterable[object]:
    try:
        rows: list[object] = batch.to_pylist()
    except UnicodeDecodeError:
        return [_single_row(batch.slice(at, 1)) for at in range(batch.num_rows)]
    return rows


def _single_row(batch: pyarrow.RecordBatch) -> object:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 ({error.reason})")


def _listed(names: list[str]) -> str:
    return (", ".join(names[:8]) or "none") + (" and more" if len(names) > 8 else "")
