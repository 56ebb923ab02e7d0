"""The README's first screen works as printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = re.compile(r"\d\.\d{4}")
ACROSS_MACHINES = 0.02  # a floating-point difference may turn a few of 312 labels


def first_block() -> tuple[str, list[str]]:
    block = re.search(r"```console\n\$ (.*?)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return block[1], block[2].splitlines()


def table_rows(lines: list[str]) -> dict[str, list[float]]:
    """The metrics of each line that begins with a source of the demo, or of the rows below them."""
    names = ("demo-post", "demo-qa", "demo-tricky", "Average", "constant unsafe")
    found = {name: line for line in lines for name in names if line.startswith(name)}
    return {name: [float(number) for number in NUMBERS.findall(line)] for name, line in found.items()}


def test_make_demo_prints_the_table_that_the_readme_shows(tmp_path: Path) -> None:
    command, printed = first_block()
    assert command == "make demo"

    made = subprocess.run(
        ["make", "demo", "-o", ".venv/.set-up", f"BIN={Path(sys.executable).parent}"],
        cwd=ROOT,
        env={**os.environ, "LIBRA_STATE_DIR": str(tmp_path / "state"), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 0, made.stderr
    expected, seen = table_rows(printed), table_rows(made.stdout.splitlines())
    assert len(expected) == 5
    assert seen.keys() == expected.keys()
    for name, values in expected.items():
        assert seen[name] == pytest.approx(values, abs=ACROSS_MACHINES), name
    written = ["report written to out/demo-report.json", "page written to out/demo-report.html"]
    assert made.stderr.splitlines()[-2:] == printed[:2] == written, "files are written before anything is printed"
    assert (ROOT / "out" / "demo-report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    report = json.loads((ROOT / "out" / "demo-report.json").read_text())
    assert report["counts"]["accepted"] == report["counts"]["scored"] == 312
