"""A finished checkpoint judged as it is served: the Libra guard renders and reads, the transformers engine computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.metrics import Judged, measure
from infra.metrics.groups import RESAMPLES
from schemas.guards import Mode
from schemas.items import Label
from schemas.messages import ChunkItem
from schemas.runs import Metric, MetricGroup
from schemas.verdicts import Outcome, Verdict
from worker.device.engines.transformers import TransformersEngine
from worker.guards.libra import LibraGuard
from worker.training.calibration import mean_nll
from worker.training.samples import Count, Sample, counts_of

_BATCH: Final = 32


@dataclass(frozen=True)
class Answers:
    """The engine's answers to some samples: per window a row of (safe, unsafe) log-probabilities in nats."""

    samples: Sequence[Sample]
    windows: Sequence[Sequence[tuple[float, ...]]]

    def verdicts(self, guard: LibraGuard) -> list[Verdict]:
        """The guard's reading of them, at its temperature."""
        return [guard.read_scores(seq, rows) for seq, rows in enumerate(self.windows)]

    def margins(self, guard: LibraGuard) -> tuple[list[float], list[bool]]:
        """The margins of the samples with a verdict, and whether the truth is unsafe.

        A margin is log P(unsafe) - log P(safe) of the worst window.
        """
        found = [
            (max(unsafe - safe for safe, unsafe in rows), sample.label is Label.UNSAFE)
            for sample, rows, verdict in zip(self.samples, self.windows, self.verdicts(guard), strict=True)
            if verdict.outcome is Outcome.SCORED
        ]
        return [margin for margin, _ in found], [truth for _, truth in found]


@dataclass(frozen=True)
class Measured:
    """One set's metrics as served. `uncalibrated`: of the same answers at temperature 1; `nll`: before and after."""

    name: str
    metrics: MetricGroup
    counts: Sequence[Count] = ()
    uncalibrated: MetricGroup | None = None
    nll: tuple[float, float] | None = None

    def metric(self, name: str) -> Metric:
        """A metric of the set by its name."""
        return next(metric for metric in self.metrics.metrics if metric.name == name)


class Examiner:
    """A checkpoint in a folder, loaded once; the folder may be given a temperature meanwhile."""

    def __init__(self, folder: Path, *, device: str = "cpu", context_tokens: int | None = None) -> None:
        self._folder, self._context_tokens = folder, context_tokens
        self.as_loaded = self.guard()
        self._engine = TransformersEngine(folder, device=device, prefix_ids=self.as_loaded.prefix_ids(Mode.SCORE))

    @property
    def revision(self) -> str:
        """The digest of the weights, as a fingerprint names them."""
        return self._engine.info.revision

    def guard(self) -> LibraGuard:
        """The guard, with the temperature that the folder has now."""
        name = self._folder.name
        return LibraGuard(self._folder, name=name, model=name, context_tokens=self._context_tokens)

    def ask(self, samples: Sequence[Sample]) -> Answers:
        """Score every sample, shortest prompts first; long ones in windows, as served."""
        windows = self.as_loaded.render(_chunk_items(samples), Mode.SCORE)
        prompts = [prompt for rows in windows for prompt in rows]
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        found: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            scores = self._engine.score([prompts[at] for at in chosen], self.as_loaded.label_ids)
            found.update(zip(chosen, scores, strict=True))
        answers = iter([found[at] for at in range(len(prompts))])
        return Answers(samples, [[next(answers) for _ in rows] for rows in windows])

    def generate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Generate mode's verdicts, in the samples' order."""
        guard, verdicts = self.as_loaded, []
        for seq, prompts in enumerate(guard.render(_chunk_items(samples), Mode.GENERATE)):
            answers = self._engine.generate(prompts, max_new_tokens=guard.max_new_tokens, stop_ids=guard.stop_ids)
            verdicts.append(guard.read_ids(seq, answers))
        return verdicts

    def measured(self, name: str, samples: Sequence[Sample], *, seed: int) -> Measured:
        """A set's results in score mode, with and without the temperature that the folder has now."""
        answers, served = self.ask(samples), self.guard()
        truths = [sample.label for sample in samples]
        margins, unsafe = answers.margins(served)
        return Measured(
            name=name,
            metrics=metrics_of(truths, answers.verdicts(served), seed=seed),
            counts=counts_of(samples),
            uncalibrated=metrics_of(truths, answers.verdicts(self.as_loaded), seed=seed, resamples=0),
            nll=(mean_nll(margins, unsafe), mean_nll(margins, unsafe, served.temperature)) if margins else None,
        )


def _chunk_items(samples: Sequence[Sample]) -> list[ChunkItem]:
    return [
        ChunkItem(seq=seq, question=sample.item.question, response=sample.item.response)
        for seq, sample in enumerate(samples)
    ]


def metrics_of(
    truths: Sequence[Label], verdicts: Sequence[Verdict], *, seed: int = 0, resamples: int = RESAMPLES
) -> MetricGroup:
    """The metrics over all rows of a set, with intervals where there are resamples; no label counts as wrong."""
    rows = [
        Judged("", "", "", truth, verdict.outcome, verdict.label, verdict.p_unsafe)
        for truth, verdict in zip(truths, verdicts, strict=True)
    ]
    return next(group for group in measure(rows, seed=seed, resamples=resamples) if group.kind == "all")


def macro_f1(metrics: MetricGroup) -> float:
    """Mean of both classes' F1; 0 for a class that is not there."""
    return sum(metrics.value(name) or 0.0 for name in ("f1_safe", "f1_unsafe")) / 2
