"""The pass over a data set before anything of it is submitted: bad rows and ids that occur twice."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from infra.errors import DataError
from producer.datasets.dataset import DataSet, Row
from schemas.runs import InvalidRow

_LISTED: Final = 1000
_BATCH_ROWS: Final = 1000


@dataclass(frozen=True)
class Validation:
    """What a pass found. `labelled` and `text_bytes` (UTF-8) are of the valid rows.

    `invalid` holds the first 1,000 invalid rows, `invalid_count` says how many there are. `duplicates` are the
    ordinals (from 0, in `DataSet.rows()`) of rows whose id came before; they count as invalid. 8 bytes each.
    """

    valid: int
    invalid: tuple[InvalidRow, ...]
    invalid_count: int
    labelled: int
    text_bytes: int
    duplicates: array[int] = field(repr=False)


def validate(dataset: DataSet, *, on_progress: Callable[[int], None] | None = None) -> Validation:
    """Read every row once, in memory that does not grow with their number (ids are compared on disk).

    Args:
        dataset: what to read.
        on_progress: called with the number of rows read so far, every 1,000 and at the end.

    Raises:
        DataError: a file cannot be read as a whole, or the disk for temporary files is full.
    """
    try:
        with closing(_Seen()) as seen:
            return _validate(dataset, seen, on_progress or (lambda _: None))
    except sqlite3.Error as error:
        raise DataError(f"{dataset.name}: ids cannot be compared in the temporary folder: {error}") from error


def valid_items(dataset: DataSet, validation: Validation) -> Iterator[Row]:
    """What is to be submitted: the rows of a fresh pass that this validation of the same data set found valid.

    Raises:
        DataError: a file has changed meanwhile.
    """
    duplicates = iter(validation.duplicates)
    duplicate = next(duplicates, None)
    for ordinal, row in enumerate(dataset.rows()):
        if ordinal == duplicate:
            duplicate = next(duplicates, None)
        elif isinstance(row, Row):
            yield row


def _validate(dataset: DataSet, seen: _Seen, on_progress: Callable[[int], None]) -> Validation:
    invalid: list[tuple[int, InvalidRow]] = []
    read = invalid_count = labelled = text_bytes = 0
    for ordinal, row in enumerate(dataset.rows()):
        read = ordinal + 1
        if isinstance(row, Row):
            size = row.item.text_bytes
            has_label = row.item.truth is not None
            labelled += has_label
            text_bytes += size
            seen.add(_Entry(ordinal, row.item.id, row.where, has_label, size))
        else:
            invalid_count += 1
            if len(invalid) < _LISTED:
                invalid.append((ordinal, row))
        if read % _BATCH_ROWS == 0:
            on_progress(read)
    on_progress(read)
    duplicates: array[int] = array("Q")
    for again, first in seen.duplicates():
        duplicates.append(again.ordinal)
        labelled -= again.labelled
        text_bytes -= again.text_bytes
        if len(duplicates) <= _LISTED:
            problem = f"duplicate id {again.id!r}, first at {first}"
            invalid.append((again.ordinal, InvalidRow(where=again.where, problem=problem)))
    invalid.sort(key=lambda entry: entry[0])
    return Validation(
        valid=read - invalid_count - len(duplicates),
        invalid=tuple(row for _, row in invalid[:_LISTED]),
        invalid_count=invalid_count + len(duplicates),
        labelled=labelled,
        text_bytes=text_bytes,
        duplicates=duplicates,
    )


class _Entry(NamedTuple):
    """A valid row as far as it matters when it turns out to be a duplicate."""

    ordinal: int
    id: str
    where: str
    labelled: bool
    text_bytes: int


class _Seen:
    """Ids seen so far, on disk."""

    def __init__(self) -> None:
        # The name "" is a database in a temporary file that is already unlinked: it cannot be left behind.
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "PRAGMA temp_store = FILE",
            "PRAGMA cache_size = -8192",
            "CREATE TABLE seen (ordinal INTEGER PRIMARY KEY, id TEXT, place TEXT, labelled INTEGER, size INTEGER)",
            "CREATE TABLE twice (id TEXT PRIMARY KEY, first INTEGER) WITHOUT ROWID",
        ):
            self._database.execute(statement)
        self._batch: list[_Entry] = []

    def close(self) -> None:
        self._database.close()

    def add(self, entry: _Entry) -> None:
        self._batch.append(entry)
        if len(self._batch) == _BATCH_ROWS:
            self._flush()

    def duplicates(self) -> Iterator[tuple[_Entry, str]]:
        """Each entry whose id came before, in order, with the place where that was."""
        self._flush()
        self._database.execute(
            "INSERT INTO twice SELECT id, min(ordinal) FROM seen GROUP BY id HAVING count(*) > 1 ORDER BY id"
        )
        found = self._database.execute(
            "SELECT again.ordinal, again.id, again.place, again.labelled, again.size, start.place"
            " FROM seen AS again CROSS JOIN twice ON twice.id = again.id CROSS JOIN seen AS start"
            " ON start.ordinal = twice.first WHERE again.ordinal > twice.first ORDER BY again.ordinal"
        )
        for ordinal, name, place, labelled, size, first in found:
            yield _Entry(ordinal, name, place, bool(labelled), size), first

    def _flush(self) -> None:
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO seen VALUES (?, ?, ?, ?, ?)", self._batch)
        self._database.execute("COMMIT")
        self._batch.clear()
