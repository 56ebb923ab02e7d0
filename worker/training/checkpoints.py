"""Checkpoints of a stage under way: what it takes to go on as if nothing had happened.

A checkpoint is a folder `step-N`: accelerate's state (weights, optimizer, random generators of every process) and our
progress. It is written under another name and renamed, so one that is there is whole; older ones go afterwards.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from infra.errors import UsageError

_PROGRESS: Final = "progress.json"


class Evaluation(BaseModel):
    """One measurement on the dev rows. `loss` is the training loss since the one before; both losses are in nats."""

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float
    dev_nll: float
    macro_f1: float
    learning_rate: float

    @property
    def rank(self) -> tuple[float, float]:
        """The order of measurements: by macro F1, then by likelihood."""
        return self.macro_f1, -self.dev_nll


class Progress(BaseModel):
    """The progress of a stage: steps done, its measurements so far, the best of them, and how many came since."""

    step: int = 0
    history: list[Evaluation] = []
    best_step: int | None = None
    stale: int = 0
    stopped: bool = False

    @property
    def best(self) -> Evaluation | None:
        """The measurement whose weights are kept."""
        return next((found for found in self.history if found.step == self.best_step), None)

    def record(self, found: Evaluation, patience: int | None) -> bool:
        """Take a measurement in; returns whether its weights are the best so far."""
        best = self.best
        better = best is None or found.rank > best.rank
        self.history.append(found)
        self.best_step, self.stale = (found.step, 0) if better else (self.best_step, self.stale + 1)
        self.stopped = patience is not None and self.stale >= patience
        return better


def save(accelerator: Any, folder: Path, progress: Progress) -> None:  # noqa: ANN401 - accelerate has no types
    """Write a checkpoint of what the accelerator prepared; every process calls it."""
    unfinished = folder / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (unfinished / _PROGRESS).write_text(progress.model_dump_json(), encoding="utf-8")
        older = _found(folder)
        target = folder / f"step-{progress.step}"
        if target.exists():
            shutil.rmtree(target)
        unfinished.replace(target)
        for path in older:
            if path != target:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def load(accelerator: Any, folder: Path, *, strict: bool) -> Progress | None:  # noqa: ANN401
    """Bring what the accelerator prepared to the newest checkpoint; None where there is none.

    `strict`: whether the checkpoint holds every weight of the model.
    """
    found = _found(folder)
    if not found:
        return None
    newest = found[-1]
    generators = len(list(newest.glob("random_states_*.pkl")))
    if generators != accelerator.num_processes:
        raise UsageError(
            f"{newest} was written by {generators} processes; go on with as many, not with {accelerator.num_processes}"
        )
    accelerator.load_state(str(newest), **({} if strict else {"strict": False}))
    return Progress.model_validate_json((newest / _PROGRESS).read_text(encoding="utf-8"))


def _found(folder: Path) -> list[Path]:
    """The checkpoints there, the newest last."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
