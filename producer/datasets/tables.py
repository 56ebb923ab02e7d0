"""Tables → rows: CSV and TSV, the sheets of a workbook, Parquet, and the Arrow files that `datasets` saves.

A row is a mapping of column to value. Of Parquet and Arrow only the columns that are looked at are read; a class label
of `datasets` is its name. An empty cell is no value.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from infra.errors import DataError
from producer.datasets.records import COLUMNS, TEXT_COLUMNS
from producer.datasets.rows import MAX_ROW_BYTES, RawRow, RowError, normal_name
from producer.datasets.sources import DataFile, is_of_split
from producer.datasets.streams import raw_bytes, utf8_bytes
from schemas.reading import Reading

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS: Final = 256
_DELIMITERS: Final = ",\t;|"
_LISTED: Final = 12
_MISQUOTED: Final = RowError(
    "a quotation mark is never closed, or stands alone within a text of several lines",
    kind="quotation marks that do not match",
    switch='"" for a quotation mark within a text',
)

_BROKEN_BOOK: Final = (KeyError, ValueError, SyntaxError, zipfile.BadZipFile)
"""What openpyxl raises of a workbook that is damaged; a SyntaxError is the XML's."""

csv.field_size_limit(MAX_ROW_BYTES)


def read_csv(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    """A row per record below the header; `where` names the line at which it begins."""
    with utf8_bytes(file, reading.encoding) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        lines = _Lines(text, file.label)
        head = next(lines, "")
        while head and not head.strip():
            head = next(lines, "")
        delimiter = "\t" if file.kind == "tsv" else _delimiter(head)
        records = csv.reader(lines.after(head), delimiter=delimiter)
        columns: list[str] = []
        start = 1
        try:
            for cells in records:
                start = lines.record_began()
                if not columns:
                    columns = _header(cells, file, reading)
                elif any(cells):
                    row = _MISQUOTED if lines.last_is_misquoted(delimiter) else _csv_row(columns, cells, delimiter)
                    yield RawRow(f"{file.label}:{start}", start, row)
            if lines.last_is_open(delimiter):
                raise DataError(f"{file.label}:{start}: a quotation mark is never closed")
        except csv.Error as error:
            raise DataError(f"{file.label}:{lines.number}: not readable as CSV: {error}") from error
        finally:
            text.detach()  # whoever opened the stream closes it


class _Lines:
    """The lines of a text, counted; keeps those of the record under way."""

    def __init__(self, text: io.TextIOBase, label: str) -> None:
        self._text = text
        self._label = label
        self._record: list[str] = []
        self._previous: list[str] = []
        self._put_back: str | None = None
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, self._put_back = self._put_back, None
        if line is None:
            line = self._text.readline(MAX_ROW_BYTES + 1)
            self.number += bool(line)
        if not line:
            raise StopIteration
        if len(line) > MAX_ROW_BYTES:
            raise DataError(f"{self._label}:{self.number}: a line of more than {MAX_ROW_BYTES:,} characters")
        self._record.append(line)
        return line

    def after(self, line: str) -> Iterator[str]:
        """The lines, with this one once more in front."""
        self._put_back = line
        self._record.clear()
        return self

    def record_began(self) -> int:
        """The line at which the record began that was just read; the next line begins another."""
        began = self.number - len(self._record) + 1
        self._previous, self._record = self._record, []
        return began

    def last_is_open(self, delimiter: str) -> bool:
        """True if the last record ended only because the text did."""
        return "unexpected end" in self._fault_of_last(delimiter)

    def last_is_misquoted(self, delimiter: str) -> bool:
        """True if the last record goes over several lines, and may have taken rows in whose text was never closed."""
        return len(self._previous) > 1 and "expected after" in self._fault_of_last(delimiter)

    def _fault_of_last(self, delimiter: str) -> str:
        try:
            list(csv.reader(self._previous, delimiter=delimiter, strict=True))
        except csv.Error as error:
            return str(error)
        return ""


def _delimiter(head: str) -> str:
    """What separates the names of the header."""
    outside = "".join(part for at, part in enumerate(head.split('"')) if at % 2 == 0)
    counts = Counter(character for character in outside if character in _DELIMITERS)
    return max(_DELIMITERS, key=lambda delimiter: counts[delimiter])


def looks_like_csv(start: bytes) -> bool:
    """True if text begins with a header that names a text."""
    head = start.partition(b"\n")[0].decode(errors="replace").rstrip("\r")
    (names,) = csv.reader([head], delimiter=_delimiter(head)) if head else ([],)
    return bool(TEXT_COLUMNS.intersection(map(normal_name, names)))


def _header(cells: Sequence[str], file: DataFile, reading: Reading) -> list[str]:
    columns = [cell.strip() for cell in cells]
    named = [column for column in columns if column]
    if twice := next((column for column, count in Counter(named).items() if count > 1), None):
        raise DataError(f"{file.label}: two columns are called {twice!r}; rename one of them")
    require_text(columns, file.label, reading)
    return columns


def _csv_row(columns: Sequence[str], cells: list[str], delimiter: str) -> object:
    if len(columns) == 1:  # whoever writes a single column need not quote what would separate others
        cells = [delimiter.join(cells)]
    if len(cells) > len(columns) and any(cells[len(columns) :]):
        problem = f"{len(cells)} cells, and the header names {len(columns)}"
        return RowError(problem, kind="more cells than the header names", switch="put quotation marks around the text")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return RowError("not UTF-8; save the file as UTF-8", kind="not UTF-8", switch="--encoding gb18030")
    return {column: cell or None for column, cell in zip_longest(columns, cells[: len(columns)]) if column}


def require_text(columns: Iterable[str], label: str, reading: Reading) -> None:
    """See that a table has a column with a text, and those that were named."""
    names = list(columns)
    listed = (", ".join(names[:_LISTED]) or "none") + (" and more" if len(names) > _LISTED else "")
    named = [(field, column) for field, column in reading.fields.items() if column and column not in names]
    for field, column in named:
        if any(part.split(".")[0] not in names for part in column.split(",")):
            raise DataError(f"{label}: no column {column!r} for the {field}; found {listed}")
    is_named = any(reading.fields.get(field) for field in ("response", "question", "messages"))
    if not is_named and not TEXT_COLUMNS.intersection(map(normal_name, names)):
        raise DataError(
            f"{label}: no column has a name that is known for a text; found {listed}. "
            "Name it: --field response=COLUMN, or prompt=COLUMN (docs/data-formats.md)"
        )


def read_workbook(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    """A row per row below the header of the one sheet that has a text, or of the sheet that `split` names."""
    try:
        import openpyxl  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise DataError(f"{file.label}: workbooks need openpyxl: pip install 'libra-fleet[xlsx]'") from error
    with raw_bytes(file) as stream:
        try:
            book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        except (*_BROKEN_BOOK, openpyxl.utils.exceptions.InvalidFileException) as error:
            raise DataError(f"{file.label}: not readable as a workbook: {error}") from error
        number = 0
        try:
            for sheet in book.worksheets:
                sheet.reset_dimensions()  # some programs write a size that is smaller than the sheet
            sheet = _sheet(book.worksheets, file, reading)
            columns: list[str] | None = None
            for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = [_cell(value) for value in values]
                if columns is None:
                    columns = _header([cell or "" for cell in cells], file, reading) if any(cells) else None
                elif any(cells):
                    row = {name: cell or None for name, cell in zip_longest(columns, cells[: len(columns)]) if name}
                    yield RawRow(f"{file.label}: row {number}", number, row)
        except _BROKEN_BOOK as error:  # whose text may quote a cell
            raise DataError(f"{file.label}: not readable as a workbook after row {number}") from error
        finally:
            book.close()


def _sheet(sheets: Sequence[Any], file: DataFile, reading: Reading) -> Any:  # noqa: ANN401 - openpyxl has no types
    """The sheet that is meant."""
    if reading.split is not None and not is_of_split(file, reading.split):
        for sheet in sheets:
            if sheet.title.lower() == reading.split.lower():
                return sheet
        raise DataError(f"{file.label}: no sheet {reading.split}; found {', '.join(sheet.title for sheet in sheets)}")
    with_text = []
    for sheet in sheets:
        head = next((row for row in sheet.iter_rows(values_only=True, max_row=20) if any(row)), ())
        names = [str(value).strip() for value in head if value is not None]
        if TEXT_COLUMNS.intersection(map(normal_name, names)) or set(names) & set(reading.fields.values()):
            with_text.append(sheet)
    if len(with_text) > 1:
        titles = ", ".join(sheet.title for sheet in with_text)
        raise DataError(f"{file.label}: rows in the sheets {titles}; choose with --split {with_text[0].title}")
    if not sheets:
        raise DataError(f"{file.label}: a workbook without sheets")
    return (with_text or sheets)[0]


def _cell(value: object) -> str | None:
    """A cell as text: a whole number without a point, true and false in small letters."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def read_parquet(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    """A row per table row, of the columns that are looked at."""
    arrow = _pyarrow(file, "Parquet")
    try:
        with raw_bytes(file) as stream, arrow.parquet.ParquetFile(stream) as table:
            columns = _wanted(table.schema_arrow.names, file, reading)
            batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
            yield from _rows(batches, _classes(table.schema_arrow), file)
    except (arrow.ArrowException, ValueError) as error:
        raise DataError(f"{file.label}: not readable as Parquet: {error}") from error


def read_arrow(file: DataFile, reading: Reading) -> Iterator[RawRow]:
    """A row per table row of an Arrow stream, as `datasets` saves them, or of an Arrow file."""
    arrow = _pyarrow(file, "Arrow")
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(raw_bytes(file))
            is_file = stream.read(6) == b"ARROW1"
            stream.seek(0)
            ipc = arrow.ipc.open_file(stream) if is_file else arrow.ipc.open_stream(stream)
            table = stack.enter_context(ipc)
            columns = _wanted(table.schema.names, file, reading)
            batches = (table.get_batch(at) for at in range(table.num_record_batches)) if is_file else iter(table)
            parts = (
                batch.select(columns).slice(at, _BATCH_ROWS)
                for batch in batches
                for at in range(0, batch.num_rows, _BATCH_ROWS)
            )
            yield from _rows(parts, _classes(table.schema), file)
    except (arrow.ArrowException, ValueError) as error:
        raise DataError(f"{file.label}: not readable as Arrow: {error}") from error


def _pyarrow(file: DataFile, what: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    try:
        import pyarrow  # noqa: PLC0415 (an extra)
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise DataError(f"{file.label}: {what} needs pyarrow: pip install 'libra-fleet[parquet]'") from error
    return pyarrow


def _wanted(names: Sequence[str], file: DataFile, reading: Reading) -> list[str]:
    require_text(names, file.label, reading)
    asked = set(reading.fields.values())
    asked |= {part.split(".")[0] for column in asked for part in column.split(",")}
    return [name for name in names if name in asked or normal_name(name) in COLUMNS]


def _classes(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Column → the names of its classes, as `datasets` notes them in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _rows(batches: Iterable[pyarrow.RecordBatch], classes: Mapping[str, list[str]], file: DataFile) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for content in _batch_rows(batch):
            number += 1
            yield RawRow(f"{file.label}: row {number}", number, _named_classes(content, classes))


def _named_classes(row: object, classes: Mapping[str, list[str]]) -> object:
    if not classes or not isinstance(row, dict):
        return row
    named = {}
    for column, names in classes.items():
        if isinstance(number := row.get(column), int):
            named[column] = names[number] if 0 <= number < len(names) else None
    return {**row, **named}


def _batch_rows(batch: pyarrow.RecordBatch) -> Sequence[object]:
    """The rows; where one is not UTF-8, one by one."""
    try:
        rows: list[object] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [RowError(f"not UTF-8 ({error.reason})")]
        return [row for at in range(batch.num_rows) for row in _batch_rows(batch.slice(at, 1))]
    return rows
