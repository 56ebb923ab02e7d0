"""A base install holds the Python client and what it needs, and nothing of a fleet."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ONLY_BASE = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
"""


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[^a-z0-9-]", requirement, maxsplit=1)[0] for requirement in requirements}


def brought_by(extra: str) -> set[str]:
    """Extras that an extra includes, itself among them."""
    found = {extra}
    for requirement in EXTRAS[extra]:
        for part in re.findall(r"libra-fleet\[([^]]*)\]", requirement):
            found |= {inner for name in part.split(",") for inner in brought_by(name)}
    return found


def run_with_the_base_alone(code: str) -> subprocess.CompletedProcess[str]:
    absent = {name.replace("-", "_") for name in names_of(EXTRAS["fleet"])} | {"yaml", "torch", "fastapi"}
    script = ONLY_BASE.format(names=absent) + code
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_base_depends_on_an_http_client_and_pydantic_alone() -> None:
    assert names_of(PROJECT["dependencies"]) == {"httpx2", "pydantic"}
    assert {"celery", "sqlalchemy", "redis", "psycopg", "click"} <= names_of(EXTRAS["fleet"])
    assert [extra for extra in EXTRAS if "fleet" not in brought_by(extra)] == ["client"]


def test_the_client_loads_where_nothing_of_a_fleet_is_installed() -> None:
    done = run_with_the_base_alone("import libra_fleet\nprint([getattr(libra_fleet, n) for n in libra_fleet.__all__])")

    assert done.returncode == 0, done.stderr
    assert "libra_fleet.client.Client" in done.stdout


def test_the_command_says_what_to_install_where_it_is_missing() -> None:
    done = run_with_the_base_alone("from libra_fleet.cli import start\nstart()")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "libra: the command is not installed; pip install 'libra-fleet[fleet]' brings it\n"
