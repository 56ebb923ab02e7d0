"""From a recipe to a guard that is served, on a tiny untrained model: whole runs of a few steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from infra.errors import DataError, UsageError
from infra.settings import child_environment
from schemas.guards import Mode
from schemas.items import Label
from schemas.messages import ChunkItem
from tests.support.gateway import free_port
from tests.support.training import dialogues, stage_settings, write_recipe, write_rows
from worker.device.engines.transformers import TransformersEngine
from worker.guards.libra import LibraGuard
from worker.guards.registry import load_guard
from worker.training.curriculum import train_guard
from worker.training.recipe import DataFile, load_recipe

TEST_ROWS = dialogues(24, seed=3, source="apart")
FIRST_STEPS = {"epochs": 1, "evaluate_every_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads only wait for one another over a model this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps a run's precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return {
        "synthetic": write_rows(folder / "synthetic.jsonl", dialogues(48, seed=1, source="synthetic")),
        "hard": write_rows(folder / "hard.jsonl", dialogues(24, seed=2, source="real", analysis=False)),
        "test": write_rows(folder / "test.jsonl", TEST_ROWS),
    }


@pytest.fixture(scope="module")
def finished(base: Path, rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a run that is done; its checkpoint is in `out` beside it."""
    stages = [
        stage_settings("pretraining", rows["synthetic"], epochs=8, evaluate_every_steps=None),
        stage_settings("finetuning", rows["hard"]),
    ]
    recipe = write_recipe(tmp_path_factory.mktemp("run"), base, stages, measure_on={"apart": str(rows["test"])})
    train_guard(load_recipe(recipe), print)
    AcceleratorState._reset_state(reset_partial_state=True)
    return recipe


@pytest.fixture(scope="module")
def short(base: Path, rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of another run that is done: two stages of one epoch each."""
    stages = [stage_settings(stage, rows[stage], **FIRST_STEPS) for stage in ("synthetic", "hard")]
    recipe = write_recipe(tmp_path_factory.mktemp("short"), base, stages)
    train_guard(load_recipe(recipe), print)
    AcceleratorState._reset_state(reset_partial_state=True)
    return recipe


def weights(recipe: Path, part: str = "") -> dict[str, torch.Tensor]:
    return load_file(recipe.parent / "out" / part / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def history(recipe: Path, stage: str) -> list[dict[str, Any]]:
    lines = (recipe.parent / "out" / "training" / stage / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_fleets_engine_and_guard_judge_rightly_with_what_was_trained(finished: Path) -> None:
    out = finished.parent / "out"
    guard = load_guard("mine", str(out))
    engine = TransformersEngine(out, prefix_ids=guard.prefix_ids(Mode.SCORE))
    items = [ChunkItem(seq=at, question=row["question"], response=row["response"]) for at, row in enumerate(TEST_ROWS)]
    scores = engine.score([prompts[0] for prompts in guard.render(items, Mode.SCORE)], guard.label_ids)
    verdicts = [guard.read_scores(at, [row]) for at, row in enumerate(scores)]
    right = [verdict.label == (Label.UNSAFE if at % 2 else Label.SAFE) for at, verdict in enumerate(verdicts)]
    assert sum(right) >= 20


def test_the_temperature_is_stored_with_the_checkpoint_and_served(finished: Path) -> None:
    out = finished.parent / "out"
    stored = json.loads((out / "libra.json").read_text(encoding="utf-8"))
    assert stored["nll_after"] <= stored["nll_before"]
    guard = LibraGuard(out, name="mine", model="mine")
    assert guard.temperature == stored["temperature"]
    plain = LibraGuard(out / "training" / "finetuning" / "model", name="mine", model="mine")
    assert (plain.temperature, plain.prompt_digest == guard.prompt_digest) == (1.0, stored["temperature"] == 1)


def test_the_card_tells_data_curves_metrics_and_calibration(finished: Path) -> None:
    out = finished.parent / "out"
    card = (out / "README.md").read_text(encoding="utf-8")
    for fact in (
        "| pretraining | train | synthetic | CC0-1.0 |",
        "| finetuning | dev | real | CC0-1.0 |",
        "| - | measured: apart | apart | CC0-1.0 | 12 | 12 |",
        "Temperature ",
        "ECE before",
        "not been reviewed",
    ):
        assert fact in card
    assert str(finished.parent) not in card
    assert "flatter" not in card
    assert "<polyline" in (out / "curves.svg").read_text(encoding="utf-8")
    assert history(finished, "pretraining")[-1]["loss"] < history(finished, "pretraining")[0]["loss"]


def test_a_finished_run_is_not_made_again(finished: Path) -> None:
    before = (finished.parent / "out" / "README.md").stat().st_mtime_ns
    told: list[str] = []
    train_guard(load_recipe(finished), told.append)
    assert [("is finished" in line) for line in told] == [True]
    assert (finished.parent / "out" / "README.md").stat().st_mtime_ns == before


def test_another_recipe_does_not_go_on_in_the_same_folder(finished: Path) -> None:
    other = load_recipe(finished).model_copy(update={"seed": 1})
    with pytest.raises(UsageError, match="begun with another recipe"):
        train_guard(other, print)
    with pytest.raises(UsageError, match="no training run wrote"):
        train_guard(other.model_copy(update={"out": finished.parent}), print)


@pytest.mark.slow
def test_the_second_stage_starts_from_the_first_and_stops_where_nothing_gets_better(
    base: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    still = stage_settings("second", rows["hard"], learning_rate=1e-30, patience=1, epochs=9, evaluate_every_steps=1)
    recipe = write_recipe(tmp_path, base, [stage_settings("first", rows["synthetic"], **FIRST_STEPS), still])
    train_guard(load_recipe(recipe), print)
    first, second = (weights(recipe, f"training/{stage}/model") for stage in ("first", "second"))
    assert equal(first, second)
    assert not equal(first, load_file(base / "model.safetensors"))
    assert equal(second, weights(recipe))
    assert [found["step"] for found in history(recipe, "second")] == [1, 2]
    assert "flatter" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


class Interrupted(Exception):  # noqa: N818 - it is what happened
    """Stands for a machine that goes away."""


def stopping_at(beginning: str) -> Callable[[str], None]:
    def report(line: str) -> None:
        if line.startswith(beginning):
            raise Interrupted

    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stops", "lora"),
    [({"synthetic": 4, "hard": 3}, None), ({"synthetic": 4}, {"rank": 2, "dropout": 0.2})],
    ids=["full", "lora"],
)
def test_an_interrupted_run_is_resumed_to_the_same_weights(
    base: Path,
    rows: dict[str, Path],
    short: Path,
    tmp_path: Path,
    *,
    stops: dict[str, int],
    lora: dict[str, Any] | None,
) -> None:
    settings = [stage_settings(stage, rows[stage], **FIRST_STEPS) for stage in stops]
    whole, parts_folder = short, tmp_path / "parts"
    parts_folder.mkdir()
    parts = write_recipe(parts_folder, base, settings, lora=lora)
    if lora:
        whole = write_recipe(tmp_path, base, settings, lora=lora)
        train_guard(load_recipe(whole), print)
    for stage, step in stops.items():
        with pytest.raises(Interrupted):
            train_guard(load_recipe(parts), stopping_at(f"{stage}: step {step}"))
        AcceleratorState._reset_state(reset_partial_state=True)
    told: list[str] = []
    train_guard(load_recipe(parts), told.append)
    assert told[0].startswith(f"{stage}: going on after step 2 of")
    assert equal(weights(whole), weights(parts))
    assert history(whole, stage) == history(parts, stage)


@pytest.mark.slow
def test_adapters_are_merged_into_weights_that_the_fleet_serves(
    base: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    stage = stage_settings("only", rows["synthetic"], **FIRST_STEPS)
    lora = {"rank": 2, "targets": ["q_proj"]}
    recipe = write_recipe(tmp_path, base, [stage], lora=lora, precision="bf16", activation_checkpointing=True)
    train_guard(load_recipe(recipe), print)
    before = load_file(base / "model.safetensors")
    merged = weights(recipe)
    changed = {name for name in before if not torch.equal(before[name].bfloat16(), merged[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    guard = load_guard("mine", str(tmp_path / "out"))
    engine = TransformersEngine(tmp_path / "out", prefix_ids=guard.prefix_ids(Mode.SCORE))
    prompts = guard.render([ChunkItem(seq=0, question="问", response="hello")], Mode.SCORE)[0]
    assert len(engine.score(prompts, guard.label_ids)[0]) == 2


@pytest.mark.slow
def test_the_smoke_recipe_makes_a_guard_and_learns_no_row_that_it_measures_on(
    base: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    train = DataFile(path=write_rows(tmp_path / "train.jsonl", [*dialogues(24, seed=1), *TEST_ROWS]))
    smoke = load_recipe(Path(__file__).parents[4] / "recipes" / "smoke.yaml")
    changes: dict[str, Any] = {"base": str(base), "out": tmp_path / "out"}
    changes["stages"] = tuple(stage.model_copy(update={"train": (train,)}) for stage in smoke.stages)
    changes["measure_on"] = {"apart": DataFile(path=rows["test"])}
    train_guard(smoke.model_copy(update=changes), print)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "LoRA, rank 8" in card
    for stage in ("pretraining", "finetuning"):
        taken = int(card.partition(f"- {stage}: ")[2].split()[0])
        assert 12 <= taken <= 24  # the others of them fell to dev, and are not there either
        assert f"| {stage} | train | apart |" not in card
        assert f"| {stage} | dev | apart |" not in card


def test_a_stage_without_both_labels_is_refused_before_anything_is_loaded(base: Path, tmp_path: Path) -> None:
    safe = write_rows(tmp_path / "safe.jsonl", dialogues(40, seed=1)[::2])
    recipe = write_recipe(tmp_path, base, [stage_settings("only", safe)])
    with pytest.raises(DataError, match=r"stage only: train has .* not of both labels"):
        train_guard(load_recipe(recipe), print)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_accumulation(
    base: Path, rows: dict[str, Path], short: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, base, [stage_settings("synthetic", rows["synthetic"], **FIRST_STEPS)])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        Popen(
            [sys.executable, "-m", "libra_fleet.cli", "train", str(recipe)],
            env=child_environment(**shared, RANK=rank, LOCAL_RANK=rank, ACCELERATE_USE_CPU="true"),
        )
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    one, two = weights(short, "training/synthetic/model"), weights(recipe)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert "| processes | 2 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
