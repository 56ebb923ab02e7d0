"""A data set: which files, which of their rows, as items."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from infra.errors import DataError, UsageError
from producer.datasets.readers import RawRow, read_rows
from producer.datasets.records import RowError, decode_line, to_item
from producer.datasets.sources import Found, find_files
from schemas.items import Item
from schemas.runs import InvalidRow


@dataclass(frozen=True, slots=True)
class Row:
    """An item and the place it was found at: `x.jsonl:17`, `x.json: element 3 (line 41)`, `x.parquet: row 5`."""

    where: str
    item: Item


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which rows are wanted. Shards are by row number modulo their count, so they partition the set and stream.

    `limit` counts rows after sharding: the first ones, or with a seed a random sample in the set's order.
    """

    shard: tuple[int, int]
    limit: int | None
    seed: int | None

    def __post_init__(self) -> None:
        index, count = self.shard
        if not 0 <= index < count:
            raise UsageError(f"shard {index} of {count}: the first is 0 of {count}, the last {count - 1} of {count}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"a limit of {self.limit} rows; at least 1 is needed")


class DataSet:
    """Rows of one source. A context manager: it owns the copy of a stream that can be read only once."""

    def __init__(self, name: str, found: Found, choice: _Choice) -> None:
        self.name = name
        self._files = found.files
        self._spool = found.spool
        self._choice = choice
        self._shard_rows: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy of stdin, if there is one. The rows cannot be read afterwards."""
        if self._spool:
            self._spool.cleanup()

    def rows(self) -> Iterator[Row | InvalidRow]:
        """The chosen rows in order, valid or not; the same ones each time.

        Raises:
            DataError: a file cannot be read as a whole, has changed meanwhile, or there is no row at all.
        """
        for stem, raw in self._chosen():
            try:
                yield Row(raw.where, _item(raw, stem))
            except RowError as error:
                yield InvalidRow(where=raw.where, problem=str(error))

    def _chosen(self) -> Iterator[tuple[str, RawRow]]:
        shard = self._shard()
        limit = self._choice.limit
        if limit is None:
            return shard
        if self._choice.seed is None:
            return islice(shard, limit)
        return self._sample(shard, limit, self._choice.seed)

    def _sample(self, shard: Iterator[tuple[str, RawRow]], size: int, seed: int) -> Iterator[tuple[str, RawRow]]:
        """A random sample in order: each row is taken with probability wanted / left (Knuth's algorithm S).

        Holds no rows, but has to know how many there are: the first time, one more pass counts them.
        """
        if self._shard_rows is None:
            self._shard_rows = sum(1 for _ in self._shard())
        left = self._shard_rows
        wanted = min(size, left)
        # random() is promised to give the same numbers in every version of Python, sample() is not.
        chance = random.Random(seed)  # noqa: S311 (a sample, no secret)
        for row in shard:
            if not wanted:
                return
            if chance.random() * left < wanted:
                wanted -= 1
                yield row
            left -= 1

    def _shard(self) -> Iterator[tuple[str, RawRow]]:
        index, count = self._choice.shard
        return islice(self._all(), index, None, count)

    def _all(self) -> Iterator[tuple[str, RawRow]]:
        """Every row, with the stem of its file."""
        empty = True
        for file in self._files:
            for raw in read_rows(file):
                empty = False
                yield file.stem, raw
        if empty:
            raise DataError(f"{self.name}: empty, there is no row in it")


def open_dataset(
    source: str,
    *,
    stdin: BinaryIO | None = None,
    shard: tuple[int, int] = (0, 1),
    limit: int | None = None,
    shuffle_seed: int | None = None,
    spool_dir: Path | None = None,
) -> DataSet:
    """The data set a source stands for: a file, a folder, `-` (stdin), `owner/name` of the hub, or `demo`.

    Args:
        source: as typed by the user; a path that exists goes before the hub (`./demo` for a folder named demo).
        stdin: what `-` reads to its end, now; none: the process's own.
        shard: (index, count): every count-th row from index on.
        limit: at most this many rows of the shard.
        shuffle_seed: with a limit, take a random sample instead of the first rows; without one, nothing.
        spool_dir: where stdin or a pipe is copied to; none: the system's folder for temporary files.

    Raises:
        DataError: there is no such source, it cannot be fetched or looked at, or it has no data file.
        UsageError: a shard or limit that cannot be.
    """
    choice = _Choice(shard, limit, shuffle_seed)
    return DataSet(source, find_files(source, stdin=stdin, spool_dir=spool_dir), choice)


def _item(raw: RawRow, stem: str) -> Item:
    content = raw.content
    if isinstance(content, bytes):
        content = decode_line(content)
    elif isinstance(content, RowError):
        raise content
    return to_item(content, f"{stem}-{raw.number}")
