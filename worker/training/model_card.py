"""The model card of a trained guard: written from what the run knows and measured, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.runs import Metric, MetricGroup
from worker.training.calibration import Fit
from worker.training.checkpoints import Evaluation
from worker.training.curves import write_curves
from worker.training.recipe import Recipe, Stage
from worker.training.samples import Count

CARD: Final = "README.md"
CURVES: Final = "curves.svg"

_SHOWN: Final = ("accuracy", "balanced_accuracy", "f1_safe", "f1_unsafe", "auroc")
_ROWS_SHOWN: Final = 20


@dataclass(frozen=True)
class StageFacts:
    """What a stage learnt from and how it went. `too_long` and `overlapping` rows were left out."""

    stage: Stage
    train: Sequence[Count]
    dev: Sequence[Count]
    overlapping: int
    too_long: int
    dev_too_long: int
    history: Sequence[Evaluation]


@dataclass(frozen=True)
class Measured:
    """One set's metrics as served, and those of the same answers at temperature 1; mean NLL before and after."""

    name: str
    counts: Sequence[Count]
    metrics: MetricGroup
    uncalibrated: MetricGroup
    nll: tuple[float, float] | None


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells. `only_dev`: no set was held out but those that chose the weights.

    `fit` is the temperature, or why there is none; `calibrated_on` the rows it was fitted on, or a stage's dev rows.
    """

    recipe: Recipe
    base_revision: str
    revision: str
    stages: Sequence[StageFacts]
    fit: Fit | str
    calibrated_on: Sequence[Count] | str
    measured: Sequence[Measured]
    only_dev: bool
    device: str
    processes: int


def write_model_card(folder: Path, facts: CardFacts) -> None:
    """Write the card and its curves into the checkpoint's folder; the card last, since it says that all is done."""
    curves = {found.stage.name: found.history for found in facts.stages}
    write_curves(folder / CURVES, curves)
    parts = [
        _head(facts),
        _data(facts),
        _recipe(facts),
        _curves(facts),
        _results(facts),
        _calibration(facts),
        _limits(facts),
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(facts: CardFacts) -> str:
    recipe = facts.recipe
    local = Path(recipe.base).exists()
    base, named = ("", Path(recipe.base).name) if local else (f"base_model: {recipe.base}\n", recipe.base)
    return f"""---
language: zh
library_name: transformers
pipeline_tag: text-generation
{base}tags: [content-moderation, guard, chinese]
---

# {recipe.name}

A guard for Chinese: it is asked in Libra Guard's words (caskcsg/Libra) and answers with Libra Guard's JSON, the label
first. Trained by Libra Fleet in {len(facts.stages)} stage{"s" if len(facts.stages) > 1 else ""} from
`{named}` (licence: {recipe.base_licence}; weights `{facts.base_revision}`). The licences of the base and of the
data below bind this checkpoint too. Weights `{facts.revision}`.

**It has not been reviewed for safety.** Measure it on your own traffic before it decides anything.

```
libra fleet worker --guard {recipe.name}=FOLDER
```"""


def _data(facts: CardFacts) -> str:
    rows = [
        (found.stage.name, part, *count)
        for found in facts.stages
        for part, counts in (("train", found.train), ("dev", found.dev))
        for count in counts
    ]
    rows += [("-", f"measured: {found.name}", *count) for found in facts.measured for count in found.counts]
    if not isinstance(facts.calibrated_on, str):
        rows += [("-", "calibration", *count) for count in facts.calibrated_on]
    left_out = "\n".join(
        f"- {found.stage.name}: {found.overlapping:,} training rows were left out because a held-out set has the same "
        f"text; of the rows above {found.too_long:,} for training and {found.dev_too_long:,} for dev were left out "
        f"because they are longer than {facts.recipe.max_tokens:,} tokens."
        for found in facts.stages
    )
    return "## Data\n\n" + _table(["stage", "part", "source", "licence", "safe", "unsafe"], rows) + "\n\n" + left_out


def _recipe(facts: CardFacts) -> str:
    recipe = facts.recipe
    settings: dict[str, Any] = {
        "method": f"LoRA, rank {recipe.lora.rank}, alpha {recipe.lora.alpha}" if recipe.lora else "full fine-tuning",
        "precision": recipe.precision,
        "seed": recipe.seed,
        "longest row": f"{recipe.max_tokens:,} tokens",
        "processes": facts.processes,
        "device": facts.device,
    }
    names = ("epochs", "learning_rate", "warmup_share", "weight_decay", "batch_rows", "label_weight", "patience")
    rows = [(found.stage.name, *(getattr(found.stage, name) or "-" for name in names)) for found in facts.stages]
    return (
        "## Recipe\n\nThe loss is on the answers alone. AdamW; the learning rate falls linearly to 0. The weights with "
        "the best macro F1 on the dev rows go on.\n\n"
        + _table(["setting", "value"], settings.items())
        + "\n\n"
        + _table(["stage", *names], rows)
    )


def _curves(facts: CardFacts) -> str:
    parts = [f"## Curves\n\n![training loss, dev NLL and macro F1 by step]({CURVES})"]
    for found in facts.stages:
        best = max(found.history, key=lambda evaluation: evaluation.rank)
        rows = [
            (
                f"{at.step:,}{' (kept)' if at.step == best.step else ''}",
                *(f"{value:.4f}" for value in (at.loss, at.dev_nll, at.macro_f1)),
            )
            for at in _thinned(found.history, best)
        ]
        parts.append(f"### {found.stage.name}\n\n" + _table(["step", "training loss", "dev NLL", "macro F1"], rows))
    return "\n\n".join(parts)


def _thinned(history: Sequence[Evaluation], best: Evaluation) -> list[Evaluation]:
    """At most about twenty measurements, the first, the last and the best among them."""
    every = max(1, len(history) // _ROWS_SHOWN)
    return [at for number, at in enumerate(history) if number % every == 0 or at is best or at is history[-1]]


def _results(facts: CardFacts) -> str:
    rows = [_result_row(found) for found in facts.measured]
    caution = (
        "\n\n**These rows also chose the weights and the temperature: the figures flatter.** The recipe names no set "
        "under `measure_on`."
        if facts.only_dev
        else ""
    )
    return (
        "## Results\n\nScore mode through the serving code; an unparseable answer counts as wrong. In brackets: 95 % "
        "intervals (bootstrap; DeLong for AUROC), which take rows for independent.\n\n"
        + _table(["set", "n", *_SHOWN, "unparseable"], rows)
        + caution
    )


def _result_row(found: Measured) -> tuple[str, ...]:
    shown = [_cell(_named(found.metrics, name)) for name in _SHOWN]
    rows, unparseable = (_named(found.metrics, name) for name in ("accuracy", "unparseable"))
    return (found.name, f"{rows.n:,}", *shown, f"{unparseable.value:.0f}")


def _calibration(facts: CardFacts) -> str:
    if isinstance(facts.fit, str):
        return f"## Calibration\n\nNone: {facts.fit}. `p_unsafe` is the model's own."
    fit = facts.fit
    where = facts.calibrated_on if isinstance(facts.calibrated_on, str) else "the calibration rows"
    rows = [
        (
            found.name,
            *(_cell(_named(group, "ece")) for group in (found.uncalibrated, found.metrics)),
            *((f"{nll:.4f}" for nll in found.nll) if found.nll else ("-", "-")),
        )
        for found in facts.measured
    ]
    return (
        f"## Calibration\n\nTemperature {fit.temperature:.4f}, fitted on {fit.rows:,} rows ({where}): NLL "
        f"{fit.nll_before:.4f} before, {fit.nll_after:.4f} after. It is in `libra.json`; the fleet applies it to "
        "`p_unsafe`, and it changes no label at 0.5.\n\n"
        + _table(["set", "ECE before", "ECE after", "NLL before", "NLL after"], rows)
    )


def _limits(facts: CardFacts) -> str:
    sources = {count.source for found in facts.stages for count in found.train}
    held = {count.source for found in facts.measured for count in found.counts}
    shared = sorted(sources & held)
    lines = [
        "Expect less on texts unlike the sources above; other languages than Chinese are out of scope.",
        "Its labels are those of its data: who wrote and judged the rows is in the data's own documentation.",
        "An analysis is a text the model writes after its label; it need not be its reason.",
    ]
    if shared:
        lines.append(f"Measured in-domain: training rows come from {', '.join(shared)} as well.")
    if any(found.too_long for found in facts.stages):
        lines.append("Rows above the longest row's length were not learnt from; longer texts are judged in windows.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _named(group: MetricGroup, name: str) -> Metric:
    return next(metric for metric in group.metrics if metric.name == name)


def _cell(metric: Metric) -> str:
    """A value with its interval, or why there is none."""
    if metric.value is None:
        return f"- ({metric.undefined})"
    reach = f" [{metric.interval.low:.3f}, {metric.interval.high:.3f}]" if metric.interval else ""
    return f"{metric.value:.3f}{reach}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
