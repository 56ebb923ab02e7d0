"""The command `libra train`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.errors import UsageError
from libra_fleet.cli.train import train
from recipes.libra_tiny import build
from recipes.libra_tiny.train import TinyRecipe
from worker.training import curriculum


def test_the_options_reach_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(build, "build_guard", lambda *arguments: calls.append(arguments))
    arguments = [
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "2",
        "--seed",
        "5",
        "--threads",
        "1",
    ]
    assert CliRunner().invoke(train, arguments).exit_code == 0
    [(data, out, recipe, also, _)] = calls
    assert (data, out, also) == (tmp_path, tmp_path / "out", ())
    assert recipe == TinyRecipe(epochs=2, seed=5, threads=1)


def test_the_defaults_are_the_bundled_guards_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(build, "build_guard", lambda *arguments: calls.append(arguments))
    CliRunner().invoke(train, ["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert calls[0][2] == TinyRecipe()


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(train, ["--data", str(tmp_path / "none"), "--out", str(tmp_path)])
    assert result.exit_code == 2


def test_a_recipe_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(curriculum, "train_guard", lambda recipe, _, **options: calls.append((recipe.name, options)))
    path = str(Path(__file__).parents[4] / "recipes" / "libra-guard-0.5b.yaml")
    assert CliRunner().invoke(train, [path]).exit_code == 0
    assert CliRunner().invoke(train, [path, "--restart"]).exit_code == 0
    assert calls == [("libra-guard-0.5b", {"restart": False}), ("libra-guard-0.5b", {"restart": True})]


@pytest.mark.parametrize("arguments", [[], ["--data", "."], ["RECIPE", "--data", "."]])
def test_neither_or_both_ways_are_a_usage_error(tmp_path: Path, arguments: list[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.touch()
    found = CliRunner().invoke(train, [str(recipe) if argument == "RECIPE" else argument for argument in arguments])
    assert isinstance(found.exception, UsageError)
