"""A finished checkpoint judged as it is served: the Libra guard renders and reads, the transformers engine computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.metrics import Judged, measure
from infra.metrics.groups import RESAMPLES
from schemas.guards import Mode
from schemas.messages import ChunkItem
from schemas.runs import MetricGroup
from schemas.verdicts import Outcome, Verdict
from worker.device.engines.transformers import TransformersEngine
from worker.guards.libra import LibraGuard
from worker.training.samples import Sample

_BATCH: Final = 32


@dataclass(frozen=True)
class Answers:
    """What the engine said of some samples: a row of (safe, unsafe) log-probabilities per window."""

    samples: Sequence[Sample]
    windows: Sequence[Sequence[tuple[float, ...]]]

    def verdicts(self, guard: LibraGuard) -> list[Verdict]:
        """The guard's reading of them, at its temperature."""
        return [guard.read_scores(seq, rows) for seq, rows in enumerate(self.windows)]

    def margins(self, guard: LibraGuard) -> tuple[list[float], list[bool]]:
        """Log P(unsafe) - log P(safe) of the worst window, and whether the truth is unsafe, of what has a verdict."""
        found = [
            (max(unsafe - safe for safe, unsafe in rows), sample.label.value == "unsafe")
            for sample, rows, verdict in zip(self.samples, self.windows, self.verdicts(guard), strict=True)
            if verdict.outcome is Outcome.SCORED
        ]
        return [margin for margin, _ in found], [truth for _, truth in found]


class Examiner:
    """A checkpoint in a folder that has no temperature yet, loaded once; it may be given one meanwhile."""

    def __init__(self, folder: Path, *, device: str) -> None:
        self._folder = folder
        self.uncalibrated = self.guard()
        prefix = self.uncalibrated.prefix_ids(Mode.SCORE)
        self._engine = TransformersEngine(folder, device=device, prefix_ids=prefix)

    @property
    def revision(self) -> str:
        """The digest of the weights, as a fingerprint names them."""
        return self._engine.info.revision

    def guard(self) -> LibraGuard:
        """The guard, with the temperature that the folder has now."""
        return LibraGuard(self._folder, name=self._folder.name, model=self._folder.name)

    def ask(self, samples: Sequence[Sample]) -> Answers:
        """Score every sample, shortest prompts first; long ones in windows, as served."""
        items = [
            ChunkItem(seq=seq, question=sample.item.question, response=sample.item.response)
            for seq, sample in enumerate(samples)
        ]
        windows = self.uncalibrated.render(items, Mode.SCORE)
        prompts = [prompt for rows in windows for prompt in rows]
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        found: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            found.update(
                zip(
                    chosen, self._engine.score([prompts[at] for at in chosen], self.uncalibrated.label_ids), strict=True
                )
            )
        answers = iter([found[at] for at in range(len(prompts))])
        return Answers(samples, [[next(answers) for _ in rows] for rows in windows])


def metrics_of(answers: Answers, guard: LibraGuard, *, seed: int, resamples: int = RESAMPLES) -> MetricGroup:
    """The metrics over all rows of a set; intervals where there are resamples."""
    rows = [
        Judged(
            source=sample.item.source,
            category=sample.item.category,
            subcategory=sample.item.subcategory,
            truth=sample.label,
            outcome=verdict.outcome,
            label=verdict.label,
            p_unsafe=verdict.p_unsafe,
        )
        for sample, verdict in zip(answers.samples, answers.verdicts(guard), strict=True)
    ]
    return next(group for group in measure(rows, seed=seed, resamples=resamples) if group.kind == "all")
