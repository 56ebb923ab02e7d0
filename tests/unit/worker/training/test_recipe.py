"""Recipes: what is shipped can be read, and what is wrong is told by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UsageError
from worker.training.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[4] / "recipes"
OURS = ("libra-guard-0.5b", "libra-guard-7b", "smoke")

MINIMAL = """
name: mine
base: some/model
out: out/mine
stages:
  - {name: only, train: [rows.jsonl], dev_share: 0.1, learning_rate: 2e-5}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", OURS)
def test_a_shipped_recipe_can_be_read_and_is_named_as_its_file(name: str) -> None:
    assert load_recipe(RECIPES / f"{name}.yaml").name == name


def test_the_gpu_recipes_learn_as_the_published_neighbour_does() -> None:
    for name in OURS[:2]:
        for stage in load_recipe(RECIPES / f"{name}.yaml").stages:
            assert (stage.epochs, stage.learning_rate, stage.weight_decay) == (3, 2e-5, 0.01)
            assert (stage.warmup_share, stage.batch_rows) == (0, 48)


def test_a_path_alone_is_a_data_file_and_a_rate_may_lack_its_point(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, MINIMAL))
    [stage] = recipe.stages
    assert (stage.train[0].path, stage.train[0].licence) == (Path("rows.jsonl"), "not stated")
    assert stage.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("learning_rate", "learning_rat"), "stages.0.learning_rat: no such key; did you mean learning_rate?"),
        ((", learning_rate: 2e-5", ""), "stages.0.learning_rate: Field required"),
        (("dev_share: 0.1", "epochs: 1"), "give either dev (files) or dev_share"),
        (("dev_share: 0.1", "dev_share: 0.1, dev: [d.jsonl]"), "give either dev (files) or dev_share"),
        (("2e-5", "fast"), "stages.0.learning_rate: Input should be a valid number"),
        (("stages:", "precision: fp8\nstages:"), "precision: Input should be 'bf16' or 'fp32'"),
        (("  - {", "  - {name: only, train: [r.jsonl], dev_share: 0.1, learning_rate: 1e-5}\n  - {"), "two stages"),
        (("name: mine", "name: [mine"), "is not YAML"),
        ((MINIMAL, "- a list"), "is no recipe"),
    ],
)
def test_a_mistake_is_told_by_its_place(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = written(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_field_has_a_place_in_the_guide() -> None:
    guide = (RECIPES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    stage = type(Recipe.model_validate({**_minimal(), "out": "x"}).stages[0])
    for name in (*Recipe.model_fields, *stage.model_fields):
        assert f"`{name}`" in guide, name


def _minimal() -> dict[str, object]:
    rows = {"name": "only", "train": ["rows.jsonl"], "dev_share": 0.1, "learning_rate": 1e-5}
    return {"name": "mine", "base": "some/model", "stages": [rows]}
