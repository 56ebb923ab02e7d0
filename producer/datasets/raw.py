"""Rows as their owner wrote them, every field kept: for commands that give a row back with something added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from producer.datasets.readers import read_rows
from producer.datasets.records import RowError, decode_line, to_item
from producer.datasets.sources import find_files
from schemas.items import Item
from schemas.runs import InvalidRow


class RawRecord(NamedTuple):
    """A JSON object with the place it was found at; `fallback_id` names it where it has no id."""

    where: str
    fallback_id: str
    row: dict[str, object]

    @property
    def id(self) -> str:
        """Its id as text, as an Item has it."""
        own = self.row.get("id")
        return self.fallback_id if own is None else str(own)

    def item(self) -> Item:
        """The item it describes.

        Raises:
            RowError: it is none.
        """
        return to_item(self.row, self.fallback_id)


def raw_records(source: str) -> Iterator[RawRecord | InvalidRow]:
    """Every row of a file or folder, in order; of Parquet only the columns that are looked at.

    Raises:
        DataError: there is no such source, or a file cannot be read as a whole.
    """
    for file in find_files(source, stdin=None, spool_dir=None).files:
        for raw in read_rows(file):
            try:
                row = _decoded(raw.content)
            except RowError as error:
                yield InvalidRow(where=raw.where, problem=str(error))
            else:
                yield RawRecord(raw.where, f"{file.stem}-{raw.number}", row)


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


def _decoded(content: object) -> dict[str, object]:
    if isinstance(content, RowError):
        raise content
    row = decode_line(content) if isinstance(content, bytes) else content
    if not isinstance(row, dict):
        raise RowError("a JSON object is expected")
    return row
