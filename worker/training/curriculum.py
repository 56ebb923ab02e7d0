"""The whole way from a recipe to a guard: stage after stage, then calibration, then the card.

A run's state lies in `training/` inside the checkpoint's folder. An interrupted run resumes from its last checkpoint,
if recipe and data are the same; every process of a distributed run calls `train_guard`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from accelerate import Accelerator

from infra.errors import DataError, UsageError
from schemas.items import Label
from worker.guards.checkpoint import CALIBRATION, context_tokens_of, tokenizer_file
from worker.guards.digest import checkpoint_digest
from worker.guards.registry import resolve_checkpoint
from worker.training.calibration import Fit, fit_temperature
from worker.training.card import CARD, CardFacts, StageFacts, write_model_card
from worker.training.evaluate import Examiner
from worker.training.examples import ExampleEncoder
from worker.training.recipe import Recipe, Stage
from worker.training.samples import Sample, counts_of, file_digest, read_samples, split, without
from worker.training.stage import Report, StageRows, history_of, run_stage

STATE: Final = "training"
_RUN: Final = "run.json"


@dataclass(frozen=True)
class StageData:
    """A stage's rows, split; `overlapping` rows were taken out of train because a held-out set has them too."""

    stage: Stage
    train: Sequence[Sample]
    dev: Sequence[Sample]
    overlapping: int


@dataclass(frozen=True)
class Data:
    """Every row of a run. `calibrate_on` may be empty, and `measure_on` too: the last stage's dev rows serve then."""

    stages: Sequence[StageData]
    calibrate_on: Sequence[Sample]
    measure_on: dict[str, Sequence[Sample]]


def train_guard(recipe: Recipe, report: Report, *, restart: bool = False) -> None:
    """Train, calibrate and describe a guard; its checkpoint is in `recipe.out`.

    `report` takes a line of progress at a time and is called by the main process only. `restart`: start over where a
    run has left files.

    Raises:
        DataError: a data set cannot be read, or leaves a stage without rows of both labels.
        GuardError: the base cannot be trained to be a Libra guard.
        UsageError: the folder holds something else than this run.
    """
    data = load_data(recipe)
    base = resolve_checkpoint(recipe.name, recipe.base)
    digest = run_digest(recipe, base)
    run = recipe.out / STATE / _RUN
    if run.exists():
        if not restart and json.loads(run.read_text(encoding="utf-8"))["digest"] != digest:
            raise UsageError(
                f"{recipe.out} was begun with another recipe, data or base; name another out, or --restart throws it "
                "away"
            )
    elif recipe.out.exists() and any(recipe.out.iterdir()):
        raise UsageError(f"{recipe.out} holds files that no training run wrote; name another out")
    # At each checkpoint it logs that a tied head is stored once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator = Accelerator(mixed_precision="bf16" if recipe.precision == "bf16" else "no")
    # No process writes before all have looked.
    accelerator.wait_for_everyone()
    main, device = accelerator.is_main_process, str(accelerator.device)
    if main:
        _begin(recipe, digest, restart=restart)
    accelerator.wait_for_everyone()
    report = report if main else lambda _: None
    if (recipe.out / CARD).exists():
        report(f"{recipe.out} is finished; --restart would make it again")
        return
    processes = accelerator.num_processes
    stages = _run_stages(accelerator, recipe, data, base, report)
    # The rest is for one process; the others would wait for it longer than their time-out.
    accelerator.end_training()
    if not main:
        return
    last = data.stages[-1]
    _publish(recipe.out / STATE / last.stage.name / "model", recipe.out)
    examiner = Examiner(recipe.out, device=device)
    report("calibrating")
    fit = _calibrate(examiner, data.calibrate_on or last.dev, recipe.out)
    own = f"dev rows of {last.stage.name}"
    sets = data.measure_on or {own: last.dev}
    report(f"measuring on {', '.join(sets)}")
    facts = CardFacts(
        recipe=recipe,
        base_revision=checkpoint_digest(base),
        revision=examiner.revision,
        stages=stages,
        fit=fit,
        calibrated_on=counts_of(data.calibrate_on) if data.calibrate_on else own,
        measured=[examiner.measured(name, samples, seed=recipe.seed) for name, samples in sets.items()],
        only_dev=not data.measure_on,
        device=device,
        processes=processes,
    )
    write_model_card(recipe.out, facts)
    report(f"{recipe.out} is ready: libra fleet worker --guard {recipe.name}={recipe.out}")


def load_data(recipe: Recipe) -> Data:
    """All rows of a run. None that is calibrated or measured on is in dev, and none of those or of dev in train."""
    calibrate_on = read_samples(recipe.calibrate_on)
    measure_on = {name: read_samples([file]) for name, file in recipe.measure_on.items()}
    apart = contents_of([*calibrate_on, *(sample for samples in measure_on.values() for sample in samples)])
    parts = []
    for stage in recipe.stages:
        train = read_samples(stage.train)
        parts.append((train, read_samples(stage.dev)) if stage.dev else split(train, stage.dev_share, recipe.seed))
    devs = [without(dev, apart) for _, dev in parts]
    held = apart | contents_of(sample for dev in devs for sample in dev)
    stages = []
    for stage, (train, _), dev in zip(recipe.stages, parts, devs, strict=True):
        kept = without(train, held)
        stages.append(StageData(stage, kept, dev, overlapping=len(train) - len(kept)))
        for name, rows in (("train", kept), ("dev", dev)):
            if {sample.label for sample in rows} != set(Label):
                raise DataError(f"stage {stage.name}: {name} has {len(rows):,} rows, and not of both labels")
    return Data(stages, calibrate_on, {name: list(samples) for name, samples in measure_on.items()})


def contents_of(samples: Iterable[Sample]) -> set[bytes]:
    """The digests of their texts."""
    return {sample.item.content_hash for sample in samples}


def run_digest(recipe: Recipe, base: Path) -> str:
    """16 hex characters over all that decides a run: recipe (but its folder), data, base model."""
    digest = hashlib.blake2b(recipe.model_dump_json(exclude={"out"}).encode(), digest_size=8)
    staged = [file for stage in recipe.stages for file in (*stage.train, *stage.dev)]
    for file in (*staged, *recipe.calibrate_on, *recipe.measure_on.values()):
        digest.update(file_digest(file.path).encode())
    digest.update(checkpoint_digest(base).encode() + tokenizer_file(base).read_bytes())
    return digest.hexdigest()


def _begin(recipe: Recipe, digest: str, *, restart: bool) -> None:
    state = recipe.out / STATE
    if restart and (state / _RUN).exists():
        # run.json stays until it is overwritten: without it the folder would belong to no run.
        for stage in (path for path in state.iterdir() if path.is_dir()):
            shutil.rmtree(stage)
        (recipe.out / CARD).unlink(missing_ok=True)
        (recipe.out / CALIBRATION).unlink(missing_ok=True)
    state.mkdir(parents=True, exist_ok=True)
    (state / _RUN).write_text(json.dumps({"digest": digest, "recipe": recipe.model_dump(mode="json")}) + "\n")


def _run_stages(accelerator: Accelerator, recipe: Recipe, data: Data, base: Path, report: Report) -> list[StageFacts]:
    """Run every stage from the weights of the one before; a finished stage is not run again."""
    context = context_tokens_of(base, None)
    if recipe.max_tokens > context:
        raise UsageError(f"max_tokens {recipe.max_tokens:,} is more than the base's context of {context:,}")
    encoder = ExampleEncoder(base)
    facts = []
    for part in data.stages:
        train, too_long = encoder.encode(part.train, recipe.max_tokens)
        dev, dev_too_long = encoder.encode(part.dev, recipe.max_tokens)
        if not train or not dev:
            raise DataError(f"stage {part.stage.name}: no row is as short as max_tokens {recipe.max_tokens:,}")
        rows = StageRows(train, dev, encoder.guard, encoder.first_ids)
        folder = recipe.out / STATE / part.stage.name
        base = run_stage(accelerator, recipe, part.stage, rows=rows, base=base, folder=folder, report=report)
        facts.append(
            StageFacts(
                stage=part.stage,
                train=counts_of(part.train),
                dev=counts_of(part.dev),
                overlapping=part.overlapping,
                too_long=too_long,
                dev_too_long=dev_too_long,
                history=history_of(folder),
            )
        )
    return facts


def _publish(model: Path, out: Path) -> None:
    """Put the stage's checkpoint into `out` too: as links where the disk can, since weights are large."""
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    (out / CALIBRATION).unlink(missing_ok=True)
    for file in model.iterdir():
        target = out / file.name
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copyfile(file, target)


def _calibrate(examiner: Examiner, samples: Sequence[Sample], out: Path) -> Fit | str:
    """Fit the temperature and store it with the weights; returns the reason where there is none."""
    margins, unsafe = examiner.ask(samples).margins(examiner.as_loaded)
    try:
        fit = fit_temperature(margins, unsafe)
    except ValueError as error:
        return str(error)
    (out / CALIBRATION).write_text(json.dumps(asdict(fit), indent=2) + "\n", encoding="utf-8")
    return fit
