"""The settings of a training run: one YAML file, checked before anything is loaded. Torch-free.

Paths are relative to the folder in which the command runs. Sizes carry their unit: rows, tokens, steps.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.errors import UsageError


class Strict(BaseModel):
    """A misspelt key is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Optimization(Strict):
    """AdamW's settings, of any training run. The learning rate rises over `warmup_share` of the steps, then falls.

    `label_weight`: the weight of a label's first token in the loss, against 1 of the answer's other tokens.
    """

    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(gt=0, lt=1)
    warmup_share: float = Field(0, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1, gt=0)
    label_weight: float = Field(1, ge=1)
    batch_rows: int = Field(48, ge=1)


class DataFile(Strict):
    """A file of Libra Bench records: .json, .jsonl or .parquet. A bare path in a recipe means one without more.

    `licence` is that of rows which do not name their own; `source` names rows without a source in the card.
    """

    path: Path
    licence: str = "not stated"
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str | Path) else value


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2021) in place of full fine-tuning; merged into the weights at a stage's end.

    `targets`: names of the linear layers that get one, or "all-linear".
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Stage(Optimization):
    """One pass of the curriculum: its rows, and the optimization over them.

    An optimizer step takes `batch_rows` rows over all processes together; a process computes `device_rows` of them at
    once and adds up the gradients of the rest. The learning rate falls linearly to 0, after `warmup_share` of the
    steps. Every `evaluate_every_steps` (none: at the end of each epoch) the stage is measured on its `dev` rows and
    checkpointed; after `patience` measurements without a better macro F1 (none: never) it ends. Its best weights go on.
    Of two measurements with one macro F1 that of the lower dev NLL is better.

    `dev_share` takes that share of the questions in `train` for dev, where no dev files are named.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")
    train: tuple[DataFile, ...] = Field(min_length=1)
    dev: tuple[DataFile, ...] = ()
    dev_share: float = Field(0, ge=0, le=0.5)
    device_rows: int = Field(12, ge=1)
    evaluate_every_steps: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _has_dev_rows(self) -> Self:
        if bool(self.dev) == bool(self.dev_share):
            raise ValueError("give either dev (files) or dev_share (a share of train): early stopping needs rows")
        return self


class Recipe(Strict):
    """A guard from its base model to its card.

    `base` is a checkpoint folder or a hub id (owner/name) with a chat template; `max_tokens` bounds a training row,
    longer ones are left out and counted. `calibrate_on`: the rows the temperature is fitted on; none: the last stage's
    dev rows. `measure_on`: sets that the card reports on, by name; no row of them is trained on.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,60}$")
    base: str = Field(min_length=1)
    base_licence: str = "not stated"
    out: Path
    seed: int = Field(20260101, ge=0, lt=2**31)
    precision: Literal["bf16", "fp32"] = "bf16"
    max_tokens: int = Field(1536, ge=64)
    activation_checkpointing: bool = False
    lora: Lora | None = None
    stages: tuple[Stage, ...] = Field(min_length=1)
    calibrate_on: tuple[DataFile, ...] = ()
    measure_on: dict[str, DataFile] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _stages_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        return self


_KEYS = tuple(dict.fromkeys(name for model in (Recipe, Stage, Lora, DataFile) for name in model.model_fields))


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        UsageError: it cannot be read, or is no recipe; the message names every field that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no recipe: it holds no keys such as base, out and stages")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False, include_input=False):
            place = ".".join(str(part) for part in detail["loc"])
            message = detail["msg"].removeprefix("Value error, ")
            if detail["type"] == "extra_forbidden":
                close = difflib.get_close_matches(str(detail["loc"][-1]), _KEYS, n=1)
                message = "no such key" + (f"; did you mean {close[0]}?" if close else "")
            problems.append(f"{place}: {message}" if place else message)
        raise UsageError(f"{path}: " + "; ".join(problems)) from error
