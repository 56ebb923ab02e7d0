"""A data set: chosen rows of its files as items, the pass that validates them, and rows as their owner wrote them."""

from __future__ import annotations

import random
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self

from infra.errors import DataError, UsageError
from producer.datasets.readers import read_rows
from producer.datasets.records import columns_of, id_of, is_usual, to_item
from producer.datasets.rows import RawRow, RowError
from producer.datasets.sources import DataFile, Found, find_files
from producer.datasets.streams import guessed
from schemas.items import Item
from schemas.reading import AS_IT_IS, Ids, Reading
from schemas.runs import InvalidRow


@dataclass(frozen=True, slots=True)
class Row:
    """An item and the place it was found at: `x.jsonl:17`, `x.json: element 3 (line 41)`, `x.parquet: row 5`."""

    where: str
    item: Item


class BadRow(InvalidRow):
    """A row that is no item. `kind` is the same for rows with the same fault, `switch` the option that would help."""

    kind: str
    switch: str = ""


class _Choice(NamedTuple):
    """The rows that are wanted: of a part (index, count), at most `limit`, the first ones or a sample by `seed`."""

    part: tuple[int, int]
    limit: int | None
    seed: int | None


class DataSet:
    """Rows of one source. A context manager: it owns the copy of a stream that can be read only once."""

    def __init__(self, name: str, found: Found, reading: Reading, choice: _Choice) -> None:
        self.name = name
        self.reading = reading
        self._files = found.files
        self._spool = found.spool
        self._part, self._limit, self._seed = choice
        self._shard_rows: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy of stdin, if there is one. The rows cannot be read afterwards."""
        if self._spool:
            self._spool.cleanup()

    def notes(self) -> list[str]:
        """What a person should know of how the set is read: encodings that are guesses, names that were taken."""
        said = []
        for file in self._files:
            try:
                encoding = guessed(file, self.reading.encoding)
            except OSError:
                continue  # reading the rows says it
            if encoding:
                said.append(f"{file.label}: read as {encoding}, a guess; --encoding names another")
        first = next((raw for file in self._files for raw in read_rows(file, self.reading)), None)
        try:
            row = first.value() if first else None
            chosen = columns_of(row, self.reading) if isinstance(row, dict) else {}
        except RowError:
            chosen = {}
        taken = [f"{field} from {column!r}" for field, column in chosen.items() if not is_usual(field, column)]
        if taken:
            said.append(f"{self.name}: {', '.join(taken)}")
        return said

    def rows(self) -> Iterator[Row | BadRow]:
        """The chosen rows in order, valid or not; the same ones each time.

        Raises:
            DataError: a file cannot be read as a whole, has changed meanwhile, or there is no row at all.
        """
        for stem, raw in self._chosen():
            try:
                yield Row(raw.where, to_item(raw.value(), f"{stem}-{raw.number}", self.reading))
            except RowError as error:
                yield BadRow(where=raw.where, problem=str(error), kind=error.kind, switch=error.switch)

    def _chosen(self) -> Iterator[tuple[str, RawRow]]:
        """The rows of the shard: all, the first ones, or a random sample in order (Knuth's algorithm S).

        The sample takes each row with probability wanted / left. It holds no rows, but has to know how many there are:
        the first time, one more pass counts them.
        """
        if self._limit is None or self._seed is None:
            yield from islice(self._shard(), self._limit)
            return
        if self._shard_rows is None:
            self._shard_rows = sum(1 for _ in self._shard())
        left = self._shard_rows
        wanted = min(self._limit, left)
        # random() is promised to give the same numbers in every version of Python, sample() is not.
        chance = random.Random(self._seed)  # noqa: S311 (a sample, no secret)
        for row in self._shard():
            if not wanted:
                return
            if chance.random() * left < wanted:
                wanted -= 1
                yield row
            left -= 1

    def _shard(self) -> Iterator[tuple[str, RawRow]]:
        """Every count-th row from the shard's index on, with the stem of its file."""
        index, count = self._part
        number = -1
        for number, (stem, raw) in enumerate(_raw_rows(self._files, self.reading)):
            if number % count == index:
                yield stem, raw
        if number < 0:
            raise DataError(f"{self.name}: empty, there is no row in it")


def _raw_rows(files: Iterable[DataFile], reading: Reading) -> Iterator[tuple[str, RawRow]]:
    """All rows in order, each with the stem of its file."""
    for file in files:
        for raw in read_rows(file, reading):
            yield file.stem, raw


def open_dataset(
    source: str,
    *,
    reading: Reading = AS_IT_IS,
    stdin: BinaryIO | None = None,
    shard: tuple[int, int] = (0, 1),
    limit: int | None = None,
    shuffle_seed: int | None = None,
    spool_dir: Path | None = None,
) -> DataSet:
    """The data set a source stands for: a file, an archive, a folder, `-` (stdin), `owner/name` of the hub, or `demo`.

    Args:
        source: as typed by the user; a path that exists goes before the hub (`./demo` for a folder named demo).
        reading: what is which column, label, split and encoding.
        stdin: what `-` reads to its end, now; none: the process's own.
        shard: (index, count): every count-th row from index on, so that shards partition the set and stream.
        limit: at most this many rows of the shard.
        shuffle_seed: with a limit, take a random sample instead of the first rows; without one, nothing.
        spool_dir: where stdin or a pipe is copied to; none: the system's folder for temporary files.

    Raises:
        DataError: there is no such source, it cannot be fetched or looked at, it has no data file, or several splits.
        UsageError: a shard or limit that cannot be.
    """
    index, count = shard
    if not 0 <= index < count:
        raise UsageError(f"shard {index} of {count}: the first is 0 of {count}, the last {count - 1} of {count}")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} rows; at least 1 is needed")
    found = find_files(source, stdin=stdin, spool_dir=spool_dir, split=reading.split)
    return DataSet(source, found, reading, _Choice(shard, limit, shuffle_seed))


class RawRecord(NamedTuple):
    """A JSON object with the place it was found at; `fallback_id` names it where it has no id."""

    where: str
    fallback_id: str
    row: dict[str, object]

    @property
    def id(self) -> str:
        """Its id as text, as an Item has it."""
        return str(id_of(self.row, self.fallback_id))

    def item(self) -> Item:
        """The item it describes, or RowError."""
        return to_item(self.row, self.fallback_id)


def raw_records(source: str) -> Iterator[RawRecord | InvalidRow]:
    """Every row of a file or folder, in order; of Parquet and Arrow only the columns that are looked at."""
    for file in find_files(source, stdin=None, spool_dir=None).files:
        for raw in read_rows(file):
            try:
                row = raw.value()
            except RowError as error:
                yield InvalidRow(where=raw.where, problem=str(error))
                continue
            if isinstance(row, dict):
                yield RawRecord(raw.where, f"{file.stem}-{raw.number}", row)
            else:
                yield InvalidRow(where=raw.where, problem="a JSON object is expected")


def bad_records(
    records: Iterable[RawRecord | InvalidRow], *, needs: Callable[[RawRecord], object] = RawRecord.item
) -> tuple[list[InvalidRow], int]:
    """The rows that cannot be used and those whose id came before, and how many rows there are.

    `needs` raises RowError for a row that cannot be used.
    """
    bad: list[InvalidRow] = []
    first_at: dict[str, str] = {}
    count = 0
    for count, record in enumerate(records, start=1):  # noqa: B007 - the last number is the count
        if isinstance(record, InvalidRow):
            bad.append(record)
            continue
        try:
            needs(record)
        except RowError as error:
            bad.append(InvalidRow(where=record.where, problem=str(error)))
            continue
        known = first_at.setdefault(record.id, record.where)
        if known != record.where:
            bad.append(InvalidRow(where=record.where, problem=f"duplicate id {record.id!r}, first at {known}"))
    return bad, count


_LISTED: Final = 1000
_BATCH_ROWS: Final = 1000
_MOST_KINDS: Final = 100
_OTHER: Final = "of other kinds"
_OTHER_IDS: Final = "--ids row (numbers for ids) or --ids hash (the same text once)"


class Fault(NamedTuple):
    """A kind of bad rows: how many there are, the first of them, and the option that would help, if one would."""

    rows: int
    first: InvalidRow
    switch: str


@dataclass(frozen=True)
class Validation:
    """The findings of a pass. `labelled` and `text_bytes` (UTF-8) are of the valid rows.

    `invalid` holds the first 1,000 invalid rows, `invalid_count` says how many there are, `faults` holds one of each
    kind (100 kinds at most), the most frequent first. `duplicates` are the ordinals (from 0, in `DataSet.rows()`) of
    rows whose id came before; they count as invalid, except with ids that are hashes: those `repeated` rows are the
    same item again. 8 bytes each.
    """

    valid: int
    invalid: tuple[InvalidRow, ...]
    invalid_count: int
    labelled: int
    text_bytes: int
    duplicates: array[int] = field(repr=False)
    faults: tuple[Fault, ...] = ()
    repeated: int = 0


class _Faults:
    """Bad rows by kind, as they are met."""

    def __init__(self) -> None:
        self.listed: list[tuple[int, InvalidRow]] = []
        self._kinds: dict[str, Fault] = {}
        self.count = 0

    def add(self, ordinal: int, row: BadRow) -> None:
        self.count += 1
        plain = InvalidRow(where=row.where, problem=row.problem)
        if self.count <= _LISTED:
            self.listed.append((ordinal, plain))
        kind = row.kind if row.kind in self._kinds or len(self._kinds) < _MOST_KINDS else _OTHER
        known = self._kinds.get(kind, Fault(0, plain, row.switch))
        self._kinds[kind] = known._replace(rows=known.rows + 1)

    @property
    def by_kind(self) -> tuple[Fault, ...]:
        return tuple(sorted(self._kinds.values(), key=lambda fault: -fault.rows))


def validate(dataset: DataSet, *, on_progress: Callable[[int], None] | None = None) -> Validation:
    """Read every row once, in memory that does not grow with their number (ids are compared on disk).

    `on_progress` is called with the number of rows read so far, every 1,000 and at the end.

    Raises:
        DataError: a file cannot be read as a whole, or the disk for temporary files is full.
    """
    bad, doubled = _Faults(), _Faults()
    duplicates: array[int] = array("Q")
    read = labelled = text_bytes = 0
    report = on_progress or (lambda _: None)
    try:
        with closing(_Seen()) as seen:
            for ordinal, row in enumerate(dataset.rows()):
                read = ordinal + 1
                if isinstance(row, Row):
                    size, has_label = row.item.text_bytes, row.item.truth is not None
                    labelled += has_label
                    text_bytes += size
                    seen.add(_Entry(ordinal, row.item.id, row.where, has_label, size))
                else:
                    bad.add(ordinal, row)
                if read % _BATCH_ROWS == 0:
                    report(read)
            report(read)
            for again, first in seen.duplicates():
                duplicates.append(again.ordinal)
                labelled -= again.labelled
                text_bytes -= again.text_bytes
                problem = f"duplicate id {again.id!r}, first at {first}"
                doubled.add(
                    again.ordinal, BadRow(where=again.where, problem=problem, kind="duplicate id", switch=_OTHER_IDS)
                )
    except sqlite3.Error as error:
        raise DataError(f"{dataset.name}: ids cannot be compared in the temporary folder: {error}") from error
    repeated = doubled.count if dataset.reading.ids is Ids.HASH else 0
    counted = [bad] if repeated else [bad, doubled]
    invalid = sorted((entry for faults in counted for entry in faults.listed), key=lambda entry: entry[0])
    return Validation(
        valid=read - bad.count - doubled.count,
        invalid=tuple(row for _, row in invalid[:_LISTED]),
        invalid_count=sum(faults.count for faults in counted),
        labelled=labelled,
        text_bytes=text_bytes,
        duplicates=duplicates,
        faults=tuple(sorted((fault for faults in counted for fault in faults.by_kind), key=lambda one: -one.rows)),
        repeated=repeated,
    )


def valid_items(dataset: DataSet, validation: Validation) -> Iterator[Row]:
    """The rows to submit: those of a fresh pass that this validation of the same data set found valid."""
    duplicates = iter(validation.duplicates)
    duplicate = next(duplicates, None)
    for ordinal, row in enumerate(dataset.rows()):
        if ordinal == duplicate:
            duplicate = next(duplicates, None)
        elif isinstance(row, Row):
            yield row


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
