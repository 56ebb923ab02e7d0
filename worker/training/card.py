"""The checkpoint's model card, written from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
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
)

_CARD: Final = Template("""---
language: zh
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [content-moderation, guard, chinese]
---

# libra-tiny, first edition

A guard of $parameters million parameters for Chinese: it is asked in Libra Guard's words
(caskcsg/Libra) and answers with Libra Guard's JSON. It ships with Libra Fleet so that the fleet can be
tried, tested and drilled with a true model on any machine, and it was trained from scratch: it contains no weights
of Libra Guard or of any other model.

**It has not been reviewed for safety.** Do not use it to protect people, to decide what is published, or to judge
a person; for that, run a Libra Guard checkpoint.

## Data

| source | licence | what |
|---|---|---|
$sources

| part of the training set | records |
|---|---|
$counts

COLD's validation texts were removed from its training texts ($dev records are used for validation). JADE was split by
a hash of the question's number: $held_out records, whose questions were never trained on, are held out. Long
responses were cut into overlapping windows of $window characters, which gave $rows training rows.

## Recipe

Qwen2 architecture from random weights, byte-level BPE tokenizer trained on the same texts. The loss is on the answer
alone, the label weighted up; user tokens are blanked at random. Made by one command, which gives the same data,
order and starting weights each time (bit-equal weights only on an equal machine and library; `--also FILE` adds a set
to the results):

```
libra train --data DATA --out OUT --seed $seed --epochs $epochs
```

| setting | value |
|---|---|
$settings

## Results

Score mode, float32 arithmetic on these bf16 weights, through the serving code. An unparseable verdict counts as
wrong.

| set | n | accuracy | macro-F1 | recall unsafe | recall safe | unparseable |
|---|---|---|---|---|---|---|
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

- The figures on COLD and JADE are in-domain: the same sources, annotators and writers as the training data. Expect
  less elsewhere.
- COLD knows offence about region, race and gender only; JADE's training part is a few hundred questions, almost all
  about crime and violated rights. Other kinds of harm were seen in a few generic sentences of our grammar, or never.
- JADE's answers were written and labelled by models. Our hard negatives weaken the shortcuts through refusals and
  length; they do not remove them.
- The analysis is one of a few fixed sentences named after the category. It explains nothing.
- Its context is that of the longest training row, $context tokens, beyond which it was seen to forget its JSON. Longer
  content is judged in overlapping windows, the worst of which is the verdict.
- Scores are not calibrated. Texts in other languages than Chinese are out of scope.
""")


@dataclass(frozen=True)
class Facts:
    """All that a card tells of one training run."""

    parameters: int
    settings: dict[str, Any]
    counts: dict[str, int]
    rows: int
    dev: int
    held_out: int
    window: int
    context: int
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
        held_out=f"{facts.held_out:,}",
        window=facts.window,
        context=facts.context,
        rows=f"{facts.rows:,}",
        seed=facts.settings["seed"],
        epochs=facts.settings["epochs"],
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
        f"{result.accuracy:.3f}",
        f"{result.macro_f1:.3f}",
        _share(counts.tp, counts.tp + counts.fn),
        _share(counts.tn, counts.tn + counts.fp),
        str(result.unparseable),
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def _table(rows: Any) -> str:  # noqa: ANN401 - rows of anything that prints
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
