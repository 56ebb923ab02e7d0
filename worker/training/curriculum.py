"""The whole way from a recipe to a guard: stage after stage, then calibration, then the card.

What the run keeps to go on with lies in `training/` inside the checkpoint's folder. A run that was interrupted goes on
where its last checkpoint was, if recipe and data are the same; every process of a distributed run calls `train_guard`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator

from infra.errors import DataError, UsageError
from schemas.items import Label
from worker.guards.checkpoint import CALIBRATION
from worker.guards.registry import resolve_checkpoint
from worker.training.answers import AnswerEncoder
from worker.training.calibration import Fit, fit_temperature
from worker.training.exam import Examiner, metrics_of
from worker.training.model_card import CardFacts, Measured, StageFacts, write_model_card
from worker.training.recipe import DataFile, Recipe, Stage
from worker.training.samples import Sample, counts_of, file_digest, read_samples, split, without
from worker.training.stage import Report, StageRows, history_of, run_stage

_STATE: Final = "training"
_RUN: Final = "run.json"
_BASE_FILES: Final = ("config.json", "tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True)
class StageData:
    """A stage's rows, split; `overlapping` rows were taken out because a held-out set has them too."""

    stage: Stage
    train: Sequence[Sample]
    dev: Sequence[Sample]
    overlapping: int


@dataclass(frozen=True)
class Data:
    """Every row of a run."""

    stages: Sequence[StageData]
    calibrate_on: Sequence[Sample]
    measure_on: dict[str, Sequence[Sample]]


def train_guard(recipe: Recipe, report: Report, *, restart: bool = False) -> None:
    """Train, calibrate and describe a guard; its checkpoint is in `recipe.out`.

    Args:
        recipe: The run's settings.
        report: Takes a line of progress at a time; called by the main process only.
        restart: Begin anew where another run's leavings, or this one's, are in the way.

    Raises:
        DataError: a data set cannot be read, or leaves a stage without rows of both labels.
        GuardError: the base cannot be trained to be a Libra guard.
        UsageError: the folder holds another run.
    """
    data = load_data(recipe)
    base = resolve_checkpoint(recipe.name, recipe.base)
    accelerator = Accelerator(mixed_precision="bf16" if recipe.precision == "bf16" else "no")
    tell = report if accelerator.is_main_process else _silent
    if accelerator.is_main_process:
        finished = _begin(recipe, _digest(recipe, base), restart=restart)
        (recipe.out / _STATE / "finished").unlink(missing_ok=True) if restart else None
    else:
        finished = False
    accelerator.wait_for_everyone()
    if (recipe.out / "README.md").exists():
        tell(f"{recipe.out} is finished; --restart makes it again")
        return
    stages = _run_stages(accelerator, recipe, data, base, tell)
    main, device = accelerator.is_main_process, str(accelerator.device)
    # The others would only wait, longer than their patience for one another allows.
    accelerator.end_training()
    if main:
        _finish(recipe, data, stages, base, device, tell)


def _silent(_: str) -> None:
    pass
