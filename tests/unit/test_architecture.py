"""docs/architecture.md against the code: its packages with their lines, and the files of its walks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = {
    name: int(lines.replace(",", "")) for name, lines in re.findall(r"^\| `([\w/.]+)` .*\| ([\d,]+) \|$", PAGE, re.M)
}


def _lines(place: Path) -> int:
    files = [place] if place.is_file() else [file for file in place.rglob("*.py") if "__pycache__" not in file.parts]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def _packages() -> set[str]:
    """Every package with code of its own that is not the child of one that is listed."""
    found = {"schemas", "libra_fleet/client.py"}
    for room in ("libra_fleet", "infra", "producer", "worker"):
        found |= {f"{room}/{folder.parent.name}" for folder in (ROOT / room).glob("*/__init__.py")}
    return found


def test_every_package_is_in_the_table() -> None:
    assert set(ROWS) == _packages()


def test_lines_are_right_to_a_tenth() -> None:
    assert {
        name: _lines(ROOT / name) for name in ROWS if abs(ROWS[name] - _lines(ROOT / name)) > 50 + ROWS[name] / 10
    } == {}


def test_each_walk_has_at_most_twelve_stops_and_each_stop_a_file() -> None:
    walks = re.findall(r"^## One .*?$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert len(walks) == 2
    for walk in walks:
        stops = re.findall(r"^\d+\. `([\w/.]+)`", walk, re.M)
        assert 0 < len(stops) == len(re.findall(r"^\d+\. ", walk, re.M)) <= 12
        assert [stop for stop in stops if not (ROOT / stop).is_file()] == []
