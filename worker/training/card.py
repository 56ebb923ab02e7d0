"""The model card of a trained guard: written from what the run knows and measured, and from nothing else.

Its curves are a small SVG: per stage the training loss and dev NLL on the left, macro F1 on the right, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.runs import Metric
from worker.training.calibration import Fit
from worker.training.checkpoints import Evaluation
from worker.training.evaluate import Measured
from worker.training.recipe import Recipe, Stage
from worker.training.samples import Count

CARD: Final = "README.md"
CURVES: Final = "curves.svg"

_METRICS: Final = ("accuracy", "balanced_accuracy", "f1_safe", "f1_unsafe", "auroc")
_ROWS_SHOWN: Final = 20
_WIDTH, _HEIGHT, _MARGIN = 320, 180, 36
_COLOURS: Final = {"training loss": "#8a5a00", "dev NLL": "#0b5cad", "macro F1": "#1a7f37"}


@dataclass(frozen=True)
class StageFacts:
    """A stage's rows and evaluations. `too_long` and `overlapping` rows were left out."""

    stage: Stage
    train: Sequence[Count]
    dev: Sequence[Count]
    overlapping: int
    too_long: int
    dev_too_long: int
    history: Sequence[Evaluation]


@dataclass(frozen=True)
class CardFacts:
    """The content of a card. `only_dev`: no set was held out but those that chose the weights.

    `fit` is the temperature, or the reason why there is none; `calibrated_on` the rows it was fitted on, or a stage's
    dev rows.
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
    svg = curves_svg({found.stage.name: found.history for found in facts.stages})
    (folder / CURVES).write_text(svg, encoding="utf-8")
    recipe = facts.recipe
    local = Path(recipe.base).exists()
    base, named = ("", Path(recipe.base).name) if local else (f"base_model: {recipe.base}\n", recipe.base)
    head = f"""---
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
    sections = (_data, _training, _results, _limits)
    text = "\n\n".join([head, *(section(facts) for section in sections)])
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


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
    return "## Data\n\n" + table(["stage", "part", "source", "licence", "safe", "unsafe"], rows) + "\n\n" + left_out


def _training(facts: CardFacts) -> str:
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
    parts = [
        "## Recipe\n\nThe loss is on the answers alone. AdamW; the learning rate falls linearly to 0. The weights with "
        "the best macro F1 on the dev rows go on.\n\n"
        + table(["setting", "value"], settings.items())
        + "\n\n"
        + table(["stage", *names], rows),
        f"## Curves\n\n![training loss, dev NLL and macro F1 by step]({CURVES})",
    ]
    for found in facts.stages:
        best = max(found.history, key=lambda evaluation: evaluation.rank)
        # At most about twenty measurements, the first, the last and the best among them.
        every = max(1, len(found.history) // _ROWS_SHOWN)
        rows = [
            (
                f"{at.step:,}{' (kept)' if at.step == best.step else ''}",
                *(f"{value:.4f}" for value in (at.loss, at.dev_nll, at.macro_f1)),
            )
            for number, at in enumerate(found.history)
            if number % every == 0 or at is best or at is found.history[-1]
        ]
        parts.append(f"### {found.stage.name}\n\n" + table(["step", "training loss", "dev NLL", "macro F1"], rows))
    return "\n\n".join(parts)


def _results(facts: CardFacts) -> str:
    rows = [
        (
            found.name,
            f"{found.metric('accuracy').n:,}",
            *(cell(found.metric(name)) for name in _METRICS),
            f"{found.metric('unparseable').value:.0f}",
        )
        for found in facts.measured
    ]
    caution = (
        "\n\n**These rows also chose the weights and the temperature: the figures flatter.** The recipe names no set "
        "under `measure_on`."
        if facts.only_dev
        else ""
    )
    results = (
        "## Results\n\nScore mode through the serving code; an unparseable answer counts as wrong. In brackets: 95 % "
        "intervals (bootstrap; DeLong for AUROC), which take rows for independent.\n\n"
        + table(["set", "n", *_METRICS, "unparseable"], rows)
        + caution
    )
    if isinstance(facts.fit, str):
        return f"{results}\n\n## Calibration\n\nNone: {facts.fit}. `p_unsafe` is the model's own."
    fit = facts.fit
    where = facts.calibrated_on if isinstance(facts.calibrated_on, str) else "the calibration rows"
    calibrated = [
        (
            found.name,
            *(cell(group.metric("ece")) for group in (found.uncalibrated, found.metrics) if group),
            *((f"{nll:.4f}" for nll in found.nll) if found.nll else ("-", "-")),
        )
        for found in facts.measured
    ]
    return (
        f"{results}\n\n## Calibration\n\nTemperature {fit.temperature:.4f}, fitted on {fit.rows:,} rows ({where}): NLL "
        f"{fit.nll_before:.4f} before, {fit.nll_after:.4f} after. It is in `libra.json`; the fleet applies it to "
        "`p_unsafe`, and it changes no label at 0.5.\n\n"
        + table(["set", "ECE before", "ECE after", "NLL before", "NLL after"], calibrated)
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


def cell(metric: Metric | None) -> str:
    """A value with its interval, or the reason why there is none."""
    if metric is None or metric.value is None:
        return f"- ({metric.undefined})" if metric else "-"
    reach = f" [{metric.interval.low:.3f}, {metric.interval.high:.3f}]" if metric.interval else ""
    return f"{metric.value:.3f}{reach}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def curves_svg(stages: Mapping[str, Sequence[Evaluation]]) -> str:
    """One row of two plots per stage."""
    rows = []
    for number, (name, history) in enumerate(stages.items()):
        losses = {"training loss": [at.loss for at in history], "dev NLL": [at.dev_nll for at in history]}
        scores = {"macro F1": [at.macro_f1 for at in history]}
        steps = [at.step for at in history]
        highest = max(value for values in losses.values() for value in values)
        top = number * (_HEIGHT + _MARGIN)
        rows.append(_plot((0, top), f"{name}: nats", steps, losses, highest))
        rows.append(_plot((_WIDTH + _MARGIN, top), f"{name}: macro F1", steps, scores, 1.0))
    width, height = 2 * _WIDTH + _MARGIN, len(stages) * (_HEIGHT + _MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n{"".join(rows)}</svg>\n'
    )


def _plot(
    corner: tuple[int, int], title: str, steps: Sequence[int], lines: Mapping[str, Sequence[float]], highest: float
) -> str:
    """One plot with its frame, from 0 to `highest`; `corner` is its left and top."""
    left, top = corner
    x0, y0 = left + _MARGIN, top + _HEIGHT
    width, height = _WIDTH - _MARGIN - 8, _HEIGHT - _MARGIN
    reach = highest or 1.0

    def point(step: int, value: float) -> str:
        return f"{x0 + width * step / steps[-1]:.1f},{y0 - height * value / reach:.1f}"

    parts = [
        f'<text x="{x0}" y="{top + 14}">{title}</text>',
        f'<path d="M{x0} {y0 - height}V{y0}H{x0 + width}" fill="none" stroke="#888"/>',
        f'<text x="{x0 - 4}" y="{y0 - height + 8}" text-anchor="end">{highest:.2f}</text>',
        f'<text x="{x0 + width}" y="{y0 + 13}" text-anchor="end">step {steps[-1]:,}</text>',
    ]
    for number, (name, values) in enumerate(lines.items()):
        colour = _COLOURS[name]
        points = [point(step, value) for step, value in zip(steps, values, strict=True)]
        marks = "".join('<circle cx="{}" cy="{}" r="2"/>'.format(*at.split(",")) for at in points)
        parts.append(f'<g fill="{colour}"><polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>{marks}')
        parts.append(f'<text x="{x0 + width}" y="{top + 28 + 13 * number}" text-anchor="end">{name}</text></g>')
    return "\n".join(parts) + "\n"
