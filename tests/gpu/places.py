"""Where a check keeps its things. Knows no torch, so that the process that only waits for stages need not load it."""

from __future__ import annotations

import json
from pathlib import Path


def models_folder(out: Path, *, dry: bool) -> Path:
    """Random weights are written once, for all stages: 16 GB, into memory where there is such a folder."""
    memory = Path("/dev/shm")  # noqa: S108 - one check runs at a time, and the folder is its own
    return out / "models" if dry or not memory.is_dir() else memory / "libra-gpu-check"


def note(out: Path, stage: str, **facts: object) -> str:
    """Add a line to the results at once, and return it."""
    text = json.dumps({"stage": stage, **facts}, ensure_ascii=False, default=str)
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return text
