"""Where a checkpoint lies: a folder, a hub id, or a base and an adapter, each of which is one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from libra_fleet.cli.options import guard_named
from worker.guards.location import parts_of


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("org/model", ("org/model", None)),
        ("/models/base", ("/models/base", None)),
        ("org/base+org/adapter", ("org/base", "org/adapter")),
        ("/models/base+org/adapter", ("/models/base", "org/adapter")),
        ("base+", ("base", "")),
        ("+adapter", ("", "adapter")),
    ],
)
def test_a_plus_stands_between_base_and_adapter(location: str, parts: tuple[str, str | None]) -> None:
    assert parts_of(location) == parts


@pytest.mark.parametrize(
    ("folders", "location", "parts"),
    [
        (["a+b"], "a+b", ("a+b", None)),
        (["a", "b"], "a+b", ("a", "b")),
        (["a+b", "c"], "a+b+c", ("a+b", "c")),
        (["a", "b+c"], "a+b+c", ("a", "b+c")),
        (["a+b"], "a+b+org/c", ("a+b", "org/c")),
        (["b+c"], "org/a+b+c", ("org/a", "b+c")),
    ],
)
def test_a_folder_may_have_a_plus_in_its_name(
    folders: list[str], location: str, parts: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in folders:
        (tmp_path / folder).mkdir()
    assert parts_of(location) == parts


def test_a_run_that_is_resumed_elsewhere_finds_both_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "lora").mkdir()
    assert guard_named("mine=base+lora").checkpoint == f"{tmp_path}/base+{tmp_path}/lora"
    assert guard_named("mine=base+org/lora").checkpoint == f"{tmp_path}/base+org/lora"
    assert guard_named("mine=org/base").checkpoint == "org/base"
