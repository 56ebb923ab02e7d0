"""Measures a checkpoint the way it is served: the Libra guard renders and reads, the transformers engine computes."""

from __future__ import annotations

import math
import random
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.metrics.counts import COUNT_METRICS, Confusion
from infra.metrics.groups import measure
from infra.metrics.tally import Judged
from schemas.guards import Mode
from schemas.items import Label, LibraRecord
from schemas.messages import ChunkItem
from schemas.runs import MetricGroup
from schemas.verdicts import Outcome, Verdict
from worker.device.engines.transformers import TransformersEngine
from worker.guards.libra import LibraGuard
from worker.training.data import truth

AGREEMENT_SAMPLE: Final = 200
_BATCH: Final = 32
_SMALLEST: Final = 1e-12
_REFUSALS: Final = re.compile("抱歉|对不起|不能|无法|不应该|不支持|违法|请遵守|不可以")


@dataclass(frozen=True)
class SetResult:
    """One data set's counts; an unparseable verdict counts as wrong. `metrics` has their intervals, and the scores'."""

    name: str
    counts: Confusion
    unparseable: int = 0
    metrics: MetricGroup | None = None

    def value(self, metric: str) -> float:
        """A metric of the set's scores; not a number where it is undefined."""
        found = self.metrics.value(metric) if self.metrics else None
        return math.nan if found is None else found

    @property
    def accuracy(self) -> float:
        """Share of right verdicts."""
        return COUNT_METRICS["accuracy"].formula(self.counts) or 0.0

    @property
    def macro_f1(self) -> float:
        """Mean of both classes' F1."""
        safe, unsafe = (COUNT_METRICS[name].formula(self.counts) or 0.0 for name in ("f1_safe", "f1_unsafe"))
        return (safe + unsafe) / 2


@dataclass(frozen=True)
class Agreement:
    """On how many items both modes gave one label, and how often generate mode gave none."""

    items: int
    agreed: int
    unparseable: int


class Examiner:
    """A checkpoint, ready to be asked."""

    def __init__(self, folder: Path, context_tokens: int | None = None) -> None:
        self._guard = LibraGuard(folder, name="libra-tiny", model=folder.name, context_tokens=context_tokens)
        self._engine = TransformersEngine(folder, prefix_ids=self._guard.prefix_ids(Mode.SCORE))

    def score(self, records: Sequence[LibraRecord]) -> list[Verdict]:
        """Score mode's verdicts, in the records' order."""
        windows = self._guard.render(_items(records), Mode.SCORE)
        flat = self._in_batches([prompt for prompts in windows for prompt in prompts])
        answers = iter(flat)
        return [self._guard.read_scores(seq, [next(answers) for _ in prompts]) for seq, prompts in enumerate(windows)]

    def generate(self, records: Sequence[LibraRecord]) -> list[Verdict]:
        """Generate mode's verdicts, in the records' order."""
        verdicts = []
        for seq, prompts in enumerate(self._guard.render(_items(records), Mode.GENERATE)):
            answers = self._engine.generate(
                prompts, max_new_tokens=self._guard.max_new_tokens, stop_ids=self._guard.stop_ids
            )
            verdicts.append(self._guard.read_ids(seq, answers))
        return verdicts

    def _in_batches(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """Scores in the prompts' order, computed shortest first."""
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        found: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            rows = self._engine.score([prompts[at] for at in chosen], self._guard.label_ids)
            found.update(zip(chosen, rows, strict=True))
        return [found[at] for at in range(len(prompts))]


def examine(examiner: Examiner, name: str, records: Sequence[LibraRecord]) -> SetResult:
    """Score mode's result on a data set."""
    verdicts = examiner.score(records)
    unparseable = sum(verdict.outcome is Outcome.UNPARSEABLE for verdict in verdicts)
    rows = [
        Judged(
            source=record.source,
            category="",
            subcategory="",
            truth=truth(record),
            outcome=verdict.outcome,
            label=verdict.label,
            p_unsafe=verdict.p_unsafe,
        )
        for record, verdict in zip(records, verdicts, strict=True)
    ]
    group = next(group for group in measure(rows) if group.kind == "all")
    return SetResult(name, confusion(records, [verdict.label for verdict in verdicts]), unparseable, group)


def margin_of(p_unsafe: float) -> float:
    """The logit of a probability, within what a float can tell from 0 and 1."""
    held = min(max(p_unsafe, _SMALLEST), 1 - _SMALLEST)
    return math.log(held / (1 - held))


def agreement(examiner: Examiner, records: Sequence[LibraRecord], seed: int, size: int = AGREEMENT_SAMPLE) -> Agreement:
    """How far score and generate agree on a sample."""
    rng = random.Random(seed)  # noqa: S311 - reproducible sample, not a secret
    sample = rng.sample(list(records), min(size, len(records)))
    pairs = list(zip(examiner.score(sample), examiner.generate(sample), strict=True))
    agreed = sum(score.label is not None and score.label is written.label for score, written in pairs)
    return Agreement(len(pairs), agreed, sum(written.outcome is Outcome.UNPARSEABLE for _, written in pairs))


def shortcut_baselines(records: Sequence[LibraRecord]) -> list[SetResult]:
    """What a data set gives away to someone who reads nothing: refusal words, and the length alone."""
    lengths = sorted(len(record.response) for record in records)
    median = lengths[len(lengths) // 2]
    by_refusal = [Label.SAFE if _REFUSALS.search(record.response) else Label.UNSAFE for record in records]
    by_length = [Label.UNSAFE if len(record.response) > median else Label.SAFE for record in records]
    return [
        SetResult("refusal words alone", confusion(records, by_refusal)),
        SetResult("length above the median alone", confusion(records, by_length)),
    ]


def confusion(records: Sequence[LibraRecord], labels: Sequence[Label | None]) -> Confusion:
    """Counts by truth and label; no label counts as the opposite of the truth."""
    pairs = [(truth(record), label or truth(record).opposite) for record, label in zip(records, labels, strict=True)]
    safe, unsafe = Label.SAFE, Label.UNSAFE
    return Confusion(*(pairs.count(pair) for pair in ((unsafe, unsafe), (unsafe, safe), (safe, unsafe), (safe, safe))))


def _items(records: Sequence[LibraRecord]) -> list[ChunkItem]:
    return [
        ChunkItem(seq=seq, question=record.question or "", response=record.response)
        for seq, record in enumerate(records)
    ]
