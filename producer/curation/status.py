"""What a curation folder holds: rows per stage, and of each by label, source, licence and reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from producer.curation.stage import STAGES, path_of, read_note


class StageStatus(NamedTuple):
    """One stage's file. `counts`: how many rows by value, for each thing that is counted."""

    name: str
    rows: int
    done: bool
    counts: dict[str, dict[str, int]]


def status_of(folder: Path) -> list[StageStatus]:
    """The stages that were begun, in their order."""
    return [_status(folder, name) for name in STAGES if read_note(folder, name)]


def _status(folder: Path, name: str) -> StageStatus:
    counts: dict[str, Counter[str]] = {}
    rows = 0
    with path_of(folder, name).open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break  # it was being written when its stage was killed
            rows += 1
            for thing, value in _counted(json.loads(line)).items():
                counts.setdefault(thing, Counter())[value] += 1
    note = read_note(folder, name)
    return StageStatus(
        name, rows, bool(note and note["done"]), {thing: dict(found.most_common()) for thing, found in counts.items()}
    )


def _counted(row: dict[str, Any]) -> dict[str, str]:
    provenance = row["provenance"]
    found = {
        "label": row.get("label") or "none",
        "source": row.get("source") or provenance["origin"],
        "licence": provenance["licence"],
        "generator": provenance["generator"],
    }
    if provenance["stage"].startswith("select:"):
        found["reason"] = provenance["stage"].removeprefix("select:")
    return found
