"""One stage: rows in order, steps, evaluations on the dev rows, early stopping, and the best weights at the end.

Knows nothing of files of rows or of other stages. Every process of a distributed run calls everything here; what is
written to disk is written by the main one. The loss of a step is the mean over the answers' tokens of all its rows,
whichever process computes them in how many parts, so that it does not depend on the number of processes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed

from infra.errors import GuardError
from schemas.items import Label
from worker.guards.libra import LibraGuard
from worker.training import checkpoints, lm, plan
from worker.training.calibration import mean_nll
from worker.training.checkpoints import Evaluation, Progress
from worker.training.evaluate import macro_f1, metrics_of
from worker.training.examples import Example
from worker.training.recipe import Recipe, Stage

Report = Callable[[str], None]

DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Types of the finished weights, by the recipe's precision."""


@dataclass(frozen=True)
class StageRows:
    """The rows that a stage learns from and is evaluated on, encoded; and the guard that reads the answers."""

    train: Sequence[Example]
    dev: Sequence[Example]
    guard: LibraGuard
    first_ids: tuple[int, int]


def run_stage(
    accelerator: Accelerator, recipe: Recipe, stage: Stage, *, rows: StageRows, base: Path, folder: Path, report: Report
) -> Path:
    """Train one stage, or the rest of it; returns the folder of its checkpoint, which can be served.

    `rows` are encoded by the tokenizer of `base`; the newest checkpoint in `folder` is resumed.

    Raises:
        GuardError: the base cannot be loaded, or the loss is no longer a number.
        UsageError: the stage was begun by another number of processes.
    """
    finished = folder / "model"
    if not finished.exists():
        run = _StageRun(accelerator, recipe, stage, rows=rows, base=base, folder=folder, report=report)
        run.train()
        run.finish(finished)
    return finished


def history_of(folder: Path) -> list[Evaluation]:
    """The evaluations of a finished stage."""
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [Evaluation.model_validate_json(line) for line in lines]


class _StageRun:
    def __init__(
        self,
        accelerator: Accelerator,
        recipe: Recipe,
        stage: Stage,
        *,
        rows: StageRows,
        base: Path,
        folder: Path,
        report: Report,
    ) -> None:
        self._accelerator, self._recipe, self._stage = accelerator, recipe, stage
        self._rows, self._base, self._folder, self._report = rows, base, folder, report
        self._lengths = [len(row.ids) for row in rows.train]
        epoch = plan.steps_per_epoch(len(rows.train), stage.batch_rows)
        self._steps = epoch * stage.epochs
        self._every = stage.evaluate_every_steps or epoch
        self._seed = f"{recipe.seed}/{stage.name}"
        self._best = folder / "best"
        self._losses: list[tuple[torch.Tensor, float]] = []
        self._undo: list[Callable[[], None]] = []
        set_seed(recipe.seed)
        bf16_base = recipe.lora is not None and recipe.precision == "bf16"
        model = lm.load_lm(base, dtype=torch.bfloat16 if bf16_base else torch.float32)
        if recipe.lora is not None:
            model = lm.adapted(model, recipe.lora)
            if recipe.activation_checkpointing:
                model.enable_input_require_grads()
        if accelerator.distributed_type is DistributedType.FSDP:
            accelerator.state.fsdp_plugin.activation_checkpointing = recipe.activation_checkpointing
        elif recipe.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": stage.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=stage.learning_rate)
        if recipe.lora is not None:
            self._undo.append(accelerator.register_save_state_pre_hook(_keep_trained_only).remove)
        self._model, self._optimizer = accelerator.prepare(model, optimizer)
        set_seed(recipe.seed, device_specific=True)
        # The weights of a checkpoint of adapters alone are not all of the model's.
        found = checkpoints.load(accelerator, folder, strict=recipe.lora is None)
        if found:
            report(f"{stage.name}: going on after step {found.step:,} of {self._steps:,}")
        self._progress = found or Progress()

    def train(self) -> None:
        """Take the steps that are left, until the last one or until it no longer gets better."""
        stage, accelerator, progress = self._stage, self._accelerator, self._progress
        self._report(
            f"{self._stage.name}: {len(self._rows.train):,} rows, {len(self._rows.dev):,} to measure on, "
            f"{self._steps:,} steps"
        )
        while progress.step < self._steps and not progress.stopped:
            self._model.train()
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate(progress.step)
            chosen = plan.step_rows(
                progress.step, rows=len(self._rows.train), batch_rows=stage.batch_rows, seed=self._seed
            )
            weight = lm.step_weight([self._rows.train[row] for row in chosen], stage.label_weight)
            batches = plan.micro_batches(
                chosen,
                self._lengths,
                process=accelerator.process_index,
                processes=accelerator.num_processes,
                device_rows=stage.device_rows,
            )
            loss = torch.zeros((), device=accelerator.device)
            for number, mine in enumerate(batches, 1):
                # Of no rows, one row's times 0: every process must run each part.
                batch = lm.training_batch([self._rows.train[row] for row in mine or [0]], stage.label_weight)
                # Gradients of all parts are added up here, and those of the processes exchanged with the last one.
                with accelerator.no_sync(self._model) if number < len(batches) else nullcontext():
                    part = lm.answer_loss(self._model, batch.to(accelerator.device)) * (1 if mine else 0) / weight
                    # The exchange takes the mean over processes; what is wanted is the sum.
                    accelerator.backward(part * accelerator.num_processes)
                    loss += part.detach()
            accelerator.clip_grad_norm_(self._model.parameters(), stage.max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._losses.append((loss, weight))
            progress.step += 1
            if progress.step % self._every == 0 or progress.step == self._steps:
                self._evaluate()
                checkpoints.save(accelerator, self._folder, progress)

    def _rate(self, step: int) -> float:
        share = plan.learning_rate_share(step, steps=self._steps, warmup_share=self._stage.warmup_share)
        return self._stage.learning_rate * share

    def _evaluate(self) -> None:
        """Evaluate on the dev rows, report, and keep the weights if they are the best so far."""
        accelerator, progress, rows = self._accelerator, self._progress, self._rows
        logprobs = self._dev_logprobs()
        # The mean since the last evaluation, over all processes.
        total = sum(loss * weight for loss, weight in self._losses)
        weights = sum(weight for _, weight in self._losses)
        self._losses.clear()
        loss = float(accelerator.reduce(torch.as_tensor(total), reduction="sum")) / weights
        if not math.isfinite(loss):
            raise GuardError(f"{self._stage.name}: the loss is no longer a number before step {progress.step:,}")
        truths = [row.truth for row in rows.dev]
        unsafe = [truth is Label.UNSAFE for truth in truths]
        verdicts = [rows.guard.read_scores(0, [row]) for row in logprobs]
        found = Evaluation(
            step=progress.step,
            loss=loss,
            dev_nll=mean_nll([unsafe_lp - safe_lp for safe_lp, unsafe_lp in logprobs], unsafe),
            macro_f1=macro_f1(metrics_of(truths, verdicts, resamples=0)),
            learning_rate=self._rate(progress.step - 1),
        )
        better = progress.record(found, self._stage.patience)
        if better:
            # A whole checkpoint, or the adapters alone.
            kept = accelerator.get_state_dict(self._model)
            if accelerator.is_main_process:
                fresh = self._folder / "best.new"
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir(parents=True)
                model = accelerator.unwrap_model(self._model)
                if self._recipe.lora is None:
                    lm.save_lm(model, fresh, base=self._base, dtype=DTYPES[self._recipe.precision], weights=kept)
                else:
                    lm.save_adapter(model, fresh, kept)
                shutil.rmtree(self._best, ignore_errors=True)
                fresh.replace(self._best)
            accelerator.wait_for_everyone()
        self._report(
            f"{self._stage.name}: step {found.step:,} of {self._steps:,}, loss {found.loss:.4f}, "
            f"dev NLL {found.dev_nll:.4f}, macro F1 {found.macro_f1:.4f}{' (best)' if better else ''}"
        )
        if progress.stopped:
            self._report(f"{self._stage.name}: stopped, no better macro F1 in {progress.stale} measurements")

    def _dev_logprobs(self) -> list[list[float]]:
        """Log-probabilities of (safe, unsafe) after every dev row's prompt: dev rows x 2, in nats."""
        self._model.eval()
        accelerator, rows = self._accelerator, self._rows.dev
        found: dict[int, list[float]] = {}
        processes = accelerator.num_processes
        size = self._stage.device_rows * processes
        by_length = sorted(range(len(rows)), key=lambda at: rows[at].label)
        for start in range(0, len(rows), size):
            batch = by_length[start : start + size]
            # As many for each process: the last batch is filled up with a row that comes twice.
            batch += [batch[0]] * (-len(batch) % processes)
            mine = batch[accelerator.process_index :: processes]
            part = lm.label_logprobs(
                self._model, [rows[at] for at in mine], self._rows.first_ids, device=accelerator.device
            )
            gathered = accelerator.gather(part).double().cpu().tolist()
            order = [batch[process::processes] for process in range(processes)]
            found.update(zip((at for part_of in order for at in part_of), gathered, strict=True))
        return [found[at] for at in range(len(rows))]

    def finish(self, finished: Path) -> None:
        """Make the best weights the stage's checkpoint, keep its history, drop what only served to resume."""
        accelerator = self._accelerator
        if accelerator.is_main_process:
            history = "".join(found.model_dump_json() + "\n" for found in self._progress.history)
            (self._folder / "history.jsonl").write_text(history, encoding="utf-8")
            if self._recipe.lora is not None:
                merged = self._folder / "merged"
                shutil.rmtree(merged, ignore_errors=True)
                lm.merge(self._base, self._best, merged, dtype=DTYPES[self._recipe.precision])
            (self._best if self._recipe.lora is None else merged).replace(finished)
            for path in self._folder.glob("step-*"):
                shutil.rmtree(path)
        for undo in self._undo:
            undo()
        self._model = self._optimizer = None
        accelerator.free_memory()
        accelerator.wait_for_everyone()


def _keep_trained_only(models: list[Any], weights: list[dict[str, Any]], folder: str) -> None:  # noqa: ARG001 - accelerate's signature
    """Leave the base out of a training checkpoint of adapters: it is there, unchanged."""
    for model, state in zip(models, weights, strict=False):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name in [name for name in state if name not in trained]:
            del state[name]
