"""The checkpoint's model card, written from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Final

from worker.training.evaluate import Agreement, SetResult

_SOURCES: Final = (
    (
        "thu-coai/COLDataset",
        "Apache-2.0",
        "Chinese comments on region, race and gender",
    ),
    ("whitzard-ai/jade-db v3.0 (medium)", "MIT", "Chinese question/response pairs; both written by models"),
    ("libra-fleet/hard-negatives", "Apache-2.0", "this project's own grammar of generic wording, see worker/training"),
    ("worker/training/data/pairs.jsonl", "Apache-2.0", "question/answer pairs written one by one for this project"),
)

_CARD: Final = Template("""---
language: zh
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [content-moderation, guard, chinese]
---

# libra-tiny, second edition

A guard of $parameters million parameters for Chinese: it is asked in Libra Guard's words
(caskcsg/Libra) and answers with Libra Guard's JSON. It is meant for a first look: as a fast filter in front of a larger
guard, and for trying, testing and drilling the fleet with a true model on any machine. It was trained from scratch: it
contains no weights of Libra Guard or of any other model.

**It has not been reviewed for safety.** It knows few kinds of harm (see Limits). Measure it on your own traffic before
it decides anything, and let nobody be judged by it alone.

## Data

| source | licence | what |
|---|---|---|
$sources

| part of the training set | records |
|---|---|
$counts

COLD's validation texts were removed from its training texts; they chose the recipe and calibrated it ($dev records).
Held out, seen by nothing: $held_out. COLD's and JADE's parts are decided by a hash of the text or of the question's
number. Long responses were cut into overlapping windows of $window characters, which gave $rows training rows.

## Recipe

A small Qwen2 from random weights over a tokenizer of single characters, trained first on the synthetic rows
($synthetic_epochs epochs), then on the real ones with the synthetic among them ($epochs epochs). The loss is on the
answer alone, the label weighted up. Beside it stands a table of hashed n-gram weights: a logistic regression on the
presence of 1- to 3-grams, each scaled by its log-count ratio: first of comments, then, beyond that, of questions and
replies. At the label both are put together by a logistic regression on COLD dev; the margin is divided by the temperature $temperature
(libra.json). docs/libra-tiny.md tells what else was tried, and what each stage gives alone. Made by one command, which
gives the same data, order and starting weights each time (bit-equal weights only on an equal machine and library):

```
make train-tiny DATA=FOLDER OUT=FOLDER        # seed $seed
```

| setting | value |
|---|---|
$settings

## Results

Score mode, float32 arithmetic on these bf16 weights, through the serving code, with 95 % intervals. An unparseable
verdict counts as wrong.

| set | n | accuracy | AUROC | ECE | macro-F1 | recall unsafe | recall safe | unparseable |
|---|---|---|---|---|---|---|---|---|
$results

A set marked "not in-domain" shares no source with the training data. Both classes are about equally frequent in all
of these sets, so an accuracy near 0.5 is no better than a coin. The set "unsafe behind a refusal and safe made longer"
is disguised with phrases that the guard was trained on and that differ between the classes: it shows that a refusal
before a violating answer no longer helps it, and nothing beyond that.

Score and generate mode gave the same label for $agreed of $asked sampled items of the first two sets; generate mode
gave no readable answer for $unreadable.

JADE gives much away without reading. On the same held-out records:

| rule | accuracy | macro-F1 |
|---|---|---|
$baselines

## Limits

- All figures but those marked otherwise are in-domain: the same sources, annotators and writers as the training data.
  Expect less elsewhere.
- COLD knows offence about region, race and gender only, and its labels in the training file were made half by machine;
  JADE's training part is a few hundred questions, almost all about crime and violated rights. Other kinds of harm were
  seen in the written pairs and in a few generic sentences of our grammar, or never.
- It counts characters and their neighbours. A wording it never met, irony, a quotation or a spelling made to deceive
  misleads it.
- JADE's answers were written and labelled by models. Our pairs and hard negatives weaken the shortcuts through refusals
  and length; they do not remove them.
- The analysis is one of a few fixed sentences named after the category. It explains nothing.
- Its context is that of the longest training row, $context tokens, beyond which it was seen to forget its JSON. Longer
  content is judged in overlapping windows, the worst of which is the verdict.
- Calibrated on COLD dev only: on other texts p_unsafe is too sure of itself.
- Texts in other languages than Chinese are out of scope.
""")


@dataclass(frozen=True)
class Facts:
    """All that a card tells of one training run."""

    parameters: int
    settings: dict[str, Any]
    counts: dict[str, int]
    rows: int
    dev: int
    held_out: Mapping[str, int]
    window: int
    context: int
    temperature: float
    results: Sequence[SetResult]
    baselines: Sequence[SetResult]
    agreement: Agreement


def write_card(folder: Path, facts: Facts) -> None:
    """Write README.md into the checkpoint's folder."""
    text = _CARD.substitute(
        parameters=f"{facts.parameters / 1e6:.1f}",
        sources=_table(_SOURCES),
        counts=_table((name, f"{count:,}") for name, count in facts.counts.items()),
        dev=f"{facts.dev:,}",
        held_out=", ".join(f"{count:,} of {name}" for name, count in facts.held_out.items()),
        temperature=facts.temperature,
        window=facts.window,
        context=facts.context,
        rows=f"{facts.rows:,}",
        seed=facts.settings["seed"],
        epochs=facts.settings["epochs"],
        synthetic_epochs=facts.settings["synthetic_epochs"],
        settings=_table(facts.settings.items()),
        results=_table(_result_row(result) for result in facts.results),
        agreed=facts.agreement.agreed,
        asked=facts.agreement.items,
        unreadable=facts.agreement.unparseable,
        baselines=_table((found.name, f"{found.accuracy:.3f}", f"{found.macro_f1:.3f}") for found in facts.baselines),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _result_row(result: SetResult) -> tuple[str, ...]:
    counts = result.counts
    return (
        result.name,
        f"{counts.total:,}",
        _with_interval(result, "accuracy"),
        _with_interval(result, "auroc"),
        _with_interval(result, "ece"),
        f"{result.macro_f1:.3f}",
        _share(counts.tp, counts.tp + counts.fn),
        _share(counts.tn, counts.tn + counts.fp),
        str(result.unparseable),
    )


def _with_interval(result: SetResult, name: str) -> str:
    metric = result.metrics.metric(name) if result.metrics else None
    if metric is None or metric.value is None:
        return "-"
    within = f" [{metric.interval.low:.3f}, {metric.interval.high:.3f}]" if metric.interval else ""
    return f"{metric.value:.3f}{within}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def _table(rows: Any) -> str:  # noqa: ANN401 - rows of anything that prints
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
