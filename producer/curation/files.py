"""A stage's files: rows that grow line by line, and a note of what they were made of.

A stage killed half-way is resumed where its file ends, as its rows come in the same order again; a finished one is left
alone; one made with other options, or of another input, is refused rather than mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.errors import DataError, UsageError
from producer.curation.rows import Row
from producer.datasets.jsonl_log import OutFile

_READ_ROWS: Final = 1_000
_BATCH_ROWS: Final = 256

STAGES: Final = (
    *("combinations", "queries", "augmented", "responses"),
    *("annotated", "dropped", "real", "selected", "selected-annotated", "selected-dropped"),
)
"""Files of a curation folder, in the order they come to be."""

Placed = tuple[str, Row]
"""The name of a stage's file, and a row for it."""


class StageStatus(NamedTuple):
    """One stage's file. `counts`: number of rows by value, for each thing that is counted."""

    name: str
    rows: int
    done: bool
    counts: dict[str, dict[str, int]]


def path_of(folder: Path, name: str) -> Path:
    """The file of a stage's rows."""
    return folder / f"{name}.jsonl"


def rows_of(folder: Path, name: str) -> Iterator[Row]:
    """The rows of a finished stage.

    Raises:
        UsageError: it has not been made, or not to its end.
    """
    note = read_note(folder, name)
    if note is None or not note["done"]:
        raise UsageError(f"{folder} has no finished {name}: that stage comes first")
    with path_of(folder, name).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows, as many at a time as the ledger is asked about."""
    left = iter(rows)
    return iter(lambda: list(islice(left, _READ_ROWS)), [])


def read_note(folder: Path, name: str) -> dict[str, Any] | None:
    """A stage's recipe (options and input) and whether its rows are all there; None where it was never begun."""
    try:
        note: dict[str, Any] = json.loads(_note_path(folder, name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{_note_path(folder, name)}: not a note of ours") from error
    return note


def carry_out(
    folder: Path,
    name: str,
    options: Mapping[str, object],
    make: Callable[[], Iterable[Placed]],
    *,
    made_of: str | Path | None = None,
    alongside: str | None = None,
) -> bool:
    """Make what a stage lacks; returns False where it was finished before.

    `options` are all that decides its rows, besides its input: `made_of`, the stage or file that it reads. `make` gives
    every row with the name of its file, in the same order each time; `alongside` is a second file, for dropped rows.

    Raises:
        UsageError: it was begun with other options or input, or the stage it reads is not finished.
        DataError: a file cannot be written.
    """
    if isinstance(made_of, str):
        next(iter(rows_of(folder, made_of)), None)
        made_of = path_of(folder, made_of)
    # As it will be read back, tuples and all.
    recipe = json.loads(json.dumps({**options, "input": _digest(made_of) if made_of else None}))
    note = read_note(folder, name)
    if note and note["recipe"] != recipe:
        was = note["recipe"]
        names = [name for name in {**was, **recipe} if was.get(name) != recipe.get(name)]
        different = "; ".join(f"{name} {str(was.get(name))[:40]}, not {str(recipe.get(name))[:40]}" for name in names)
        raise UsageError(
            f"{path_of(folder, name)} was made with other options or input ({different}); "
            f"use another folder, or remove it and {_note_path(folder, name).name}"
        )
    if note and note["done"]:
        return False
    files = {file: OutFile(path_of(folder, file)) for file in (name, alongside) if file}
    if note is None and any(file.ids for file in files.values()):
        raise UsageError(f"{path_of(folder, name)} is there without its note: move it away")
    _write_notes(folder, files, recipe, done=False)
    known = {place: frozenset(file.ids) for place, file in files.items()}
    fresh = ((place, row) for place, row in make() if row["id"] not in known[place])
    while batch := list(islice(fresh, _BATCH_ROWS)):
        for place, file in files.items():
            if rows := [row for at, row in batch if at == place]:
                file.append(rows)
    _write_notes(folder, files, recipe, done=True)
    return True


def in_file(name: str, rows: Iterable[Row]) -> Iterator[Placed]:
    """Rows that all go to one file."""
    return ((name, row) for row in rows)


def status_of(folder: Path) -> list[StageStatus]:
    """The stages that were begun, in their order: rows, and how many by label, source, licence, generator, reason."""
    found = []
    for name in STAGES:
        note = read_note(folder, name)
        if note is None:
            continue
        counts: dict[str, Counter[str]] = {}
        rows = 0
        with path_of(folder, name).open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    break  # it was being written when its stage was killed
                rows += 1
                row = json.loads(line)
                provenance = row["provenance"]
                things = {
                    "label": row.get("label") or "none",
                    "source": row.get("source") or provenance["origin"],
                    "licence": provenance["licence"],
                    "generator": provenance["generator"],
                }
                if provenance["stage"].startswith("select:"):
                    things["reason"] = provenance["stage"].removeprefix("select:")
                for thing, value in things.items():
                    counts.setdefault(thing, Counter())[value] += 1
        ranked = {thing: dict(counter.most_common()) for thing, counter in counts.items()}
        found.append(StageStatus(name, rows, bool(note["done"]), ranked))
    return found


def _write_notes(folder: Path, files: Iterable[str], recipe: Mapping[str, object], *, done: bool) -> None:
    for name in files:
        content = json.dumps({"recipe": recipe, "done": done}, ensure_ascii=False, indent=1) + "\n"
        new = _note_path(folder, name).with_suffix(".json.new")
        new.write_text(content, encoding="utf-8")
        new.replace(_note_path(folder, name))


def _note_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
