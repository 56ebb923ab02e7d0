"""`python -m tests.gpu OUT [--dry] [--stage NAME]`: all stages, each in a process and a limit of its own."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.gpu.places import models_folder, note
from tests.gpu.report import page, read, sound

STAGES: Final = {
    "facts": ("facts:run", 60),
    "models": ("models:run", 80),
    "correct": ("correct:run", 70),
    "memory": ("memory:run", 60),
    "overlap": ("overlap:run", 40),
    "speed, 0.5B": ("speed:half", 60),
    "speed, 7B": ("speed:seven", 80),
    "generate": ("generate:run", 40),
    "fleet": ("fleet:run", 150),
}
"""Where each begins, and its limit in seconds: 640 together, of which about 350 are used on an H200 by estimate."""
DRY_LIMIT_S: Final = 300
"""A shared CPU may take longer over toy shapes than a GPU over real ones."""


def main() -> int:
    """Run one stage here, or all in child processes."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry", action="store_true", help="on a CPU with toy shapes")
    parser.add_argument("--stage", choices=STAGES)
    options = parser.parse_args()
    out = options.out.resolve()
    if options.stage:
        out.mkdir(parents=True, exist_ok=True)
        _here(out, options.stage, dry=options.dry)
        sys.stdout.flush()
        os._exit(0)  # a device that a stage has lost on purpose can hang the interpreter's own way out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        for stage in STAGES:
            _apart(out, stage, dry=options.dry)
    finally:
        shutil.rmtree(models_folder(out, dry=options.dry), ignore_errors=True)
    results = read(out)
    (out / "report.md").write_text(page(results, dry=options.dry), encoding="utf-8")
    print(f"{out / 'report.md'}: {'all holds' if sound(results) else 'something does NOT hold'}")
    return 0 if sound(results) else 1


def _here(out: Path, stage: str, *, dry: bool) -> None:
    from tests.gpu.ground import Ground  # torch takes seconds: not in the process that only waits

    place, _ = STAGES[stage]
    module, _, function = place.partition(":")
    getattr(importlib.import_module(f"tests.gpu.{module}"), function)(Ground(out, stage, dry))


def _apart(out: Path, stage: str, *, dry: bool) -> None:
    limit_s = DRY_LIMIT_S if dry else STAGES[stage][1]
    command = [sys.executable, "-m", "tests.gpu", str(out), "--stage", stage, *(["--dry"] if dry else [])]
    began = time.monotonic()
    ended: int | str
    with (out / "log.txt").open("ab") as log:
        try:
            ended = subprocess.run(command, stdout=log, stderr=log, timeout=limit_s, check=False).returncode
        except subprocess.TimeoutExpired:
            ended = "over its limit"
    seconds = round(time.monotonic() - began)
    note(out, stage, ended=ended, s=seconds, limit_s=limit_s)
    print(f"{stage}: {'ended' if ended == 0 else ended} after {seconds} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
