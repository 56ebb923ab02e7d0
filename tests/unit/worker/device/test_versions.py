"""Versions that change verdicts are refused, each with its reason, by the worker and by the doctor."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from infra.errors import GuardError
from libra_fleet.doctor import Level
from libra_fleet.doctor.machine import check_versions, installed_version
from worker.device.versions import FLOORS, refuse_older

OLDER = {"torch": ["2.6.0", "2.9.1+cu128", "2.10.0"], "transformers": ["5.2.0", "5.17.0", "5.22.9"]}


@pytest.mark.parametrize(("name", "old"), [(name, old) for name, all_ in OLDER.items() for old in all_])
def test_an_older_version_is_refused_with_its_reason(name: str, old: str) -> None:
    with pytest.raises(GuardError, match=re.escape(f"{name} {old} is older than {FLOORS[name].oldest}: ")) as refusal:
        refuse_older(lambda asked: old if asked == name else FLOORS[asked].oldest)
    assert FLOORS[name].why in str(refusal.value)
    found = check_versions(lambda asked: old if asked == name else installed_version(asked))
    [error] = [finding for finding in found if finding.level is Level.ERROR]
    assert (name in error.what, error.why) == (True, FLOORS[name].why)


def test_what_is_installed_here_is_allowed() -> None:
    refuse_older()


def test_an_absent_package_is_named_with_the_extra() -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    with pytest.raises(GuardError, match=r"libra-fleet\[worker\]"):
        refuse_older(absent)


def test_the_package_asks_for_what_is_refused_below() -> None:
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, floor in FLOORS.items():
        assert f"{name}>={floor.oldest}" in extras["worker"]
