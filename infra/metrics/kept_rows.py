"""The rows of a run, put down in any order and taken up again highest score first, in memory that does not grow.

A row is a score and the number of its kind: its cell (source, category, subcategory) and how it ended. Sorted pieces
that memory should not hold go to one temporary file, 12 bytes a row. Knows nothing of metrics.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from array import array
from collections.abc import Iterator
from itertools import product
from math import inf
from typing import IO, Final, NamedTuple, Self

from infra.metrics.tally import Judged
from schemas.items import Label
from schemas.verdicts import Outcome

OTHER: Final = "(other)"
"""The name under which groups are counted together that are not listed by themselves."""
MAX_CELLS: Final = 131_072
"""Cells that are told apart. Rows of later ones keep their source; of twice as many, not even that."""

_PIECE_ROWS: Final = 200_000
_BLOCK_ROWS: Final = 4_096
_ENDINGS: Final = tuple(product((None, *Label), Outcome, (None, *Label), (False, True)))
_ENDING_NUMBERS: Final = {ending: number for number, ending in enumerate(_ENDINGS)}

Cell = tuple[str, str, str]
_Record = tuple[float, int]
"""A negative score, so that ascending order is the highest score first, and a kind; no score comes last."""


class _Piece(NamedTuple):
    offset: int
    rows: int


class KeptRows:
    """Rows of one run; a context manager, which removes the temporary file."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        """Every cell that a row was put down for."""
        self.sizes: list[int] = []
        """The number of rows of each of `cells`."""
        self._numbers: dict[Cell, int] = {}
        self._records: list[_Record] = []
        self._pieces: list[_Piece] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Judged) -> None:
        """Put one row down.

        Raises:
            OSError: the folder for temporary files is full, or not writable.
        """
        number = self._numbers.get(row[:3])
        if number is None:
            number = self._number(row[:3])
        self.sizes[number] += 1
        ending = _ENDING_NUMBERS[row.truth, row.outcome, row.label, row.controversial]
        score = inf if row.p_unsafe is None else -row.p_unsafe
        self._records.append((score, number * len(_ENDINGS) + ending))
        if len(self._records) == _PIECE_ROWS:
            self._put_away()

    def highest_first(self) -> Iterator[tuple[int, Judged]]:
        """All rows with the number of their cell, the highest p_unsafe first, those without one last."""
        self._records.sort()
        for score, kind in heapq.merge(*map(self._read, self._pieces), self._records):
            number, ending = divmod(kind, len(_ENDINGS))
            truth, outcome, label, controversial = _ENDINGS[ending]
            p_unsafe = None if score == inf else -score
            yield number, Judged(*self.cells[number], truth, outcome, label, p_unsafe, controversial)

    def _number(self, cell: Cell) -> int:
        if len(self.cells) >= MAX_CELLS:
            cell = (cell[0] if len(self.cells) < 2 * MAX_CELLS else OTHER, OTHER, OTHER)
        if cell not in self._numbers:
            self._numbers[cell] = len(self.cells)
            self.cells.append(cell)
            self.sizes.append(0)
        return self._numbers[cell]

    def _put_away(self) -> None:
        """Write what is in memory to the file, as one sorted piece: all scores, then all kinds."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="libra-report-")  # noqa: SIM115 - closed with this object
        self._records.sort()
        self._pieces.append(_Piece(self._file.tell(), len(self._records)))
        array("d", (score for score, _ in self._records)).tofile(self._file)
        array("I", (kind for _, kind in self._records)).tofile(self._file)
        self._file.flush()
        self._records = []

    def _read(self, piece: _Piece) -> Iterator[_Record]:
        assert self._file is not None  # noqa: S101 - there is no piece without a file
        scores_at, kinds_at = piece.offset, piece.offset + piece.rows * array("d").itemsize
        for first in range(0, piece.rows, _BLOCK_ROWS):
            scores, kinds = array("d"), array("I")
            rows = min(_BLOCK_ROWS, piece.rows - first)
            for column, start in ((scores, scores_at), (kinds, kinds_at)):
                size = column.itemsize
                column.frombytes(os.pread(self._file.fileno(), rows * size, start + first * size))
            yield from zip(scores, kinds, strict=True)
