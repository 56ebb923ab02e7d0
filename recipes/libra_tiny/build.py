"""The whole way from the data to the bundled guard: tokenizer, two stages, n-gram table, calibration, model card."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

import torch
from safetensors import safe_open

from recipes.libra_tiny.data import PAIRS, WINDOW_CHARS, Corpus, load_corpus, windowed
from recipes.libra_tiny.hard_negatives import disguise
from recipes.libra_tiny.ngrams import fit_shares, fit_table, presence
from recipes.libra_tiny.tokenizer import train_tokenizer
from recipes.libra_tiny.train import TinyRecipe, Trainer, lm_margins, save_checkpoint, save_temperature
from schemas.items import Label
from schemas.verdicts import Outcome, Verdict
from worker.guards.checkpoint import context_tokens_of, temperature_of
from worker.training.calibration import fit_temperature
from worker.training.card import CARD, cell, table
from worker.training.evaluate import Examiner, Measured, macro_f1, metrics_of
from worker.training.recipe import DataFile
from worker.training.samples import Sample, read_samples
from worker.training.stage import Report

AGREEMENT_SAMPLE: Final = 200
_REFUSALS: Final = re.compile("抱歉|对不起|不能|无法|不应该|不支持|违法|请遵守|不可以")
_SOURCES: Final = (
    ("thu-coai/COLDataset", "Apache-2.0", "Chinese comments on region, race and gender"),
    ("whitzard-ai/jade-db v3.0 (medium)", "MIT", "Chinese question/response pairs; both written by models"),
    (
        "libra-fleet/hard-negatives",
        "Apache-2.0",
        "this project's own grammar of generic wording, see recipes/libra_tiny",
    ),
    (
        "recipes/libra_tiny/data/pairs.jsonl",
        "Apache-2.0",
        "question/answer pairs written one by one for this project",
    ),
)


def build_guard(data: Path, out: Path, recipe: TinyRecipe, also: Sequence[Path], report: Report) -> None:
    """Train on the sets in `data`, write the checkpoint to `out`, measure it, write its card.

    Args:
        data: The folder of cold_train.jsonl, cold_dev.jsonl and jade_medium.json.
        out: The checkpoint's folder; an older checkpoint there is replaced.
        recipe: The run's settings.
        also: Further data sets to measure on, never trained on.
        report: Takes one line of progress at a time.

    Raises:
        DataError: a data set cannot be read.
        GuardError: the trained tokenizer cannot tell the labels apart.
    """
    further = {path.name: read_samples([DataFile(path=path)]) for path in also}
    corpus = load_corpus(data, recipe.seed)
    build_checkpoint(corpus, out, recipe, report)
    calibrate(corpus.cold_dev, out, report)
    examiner = Examiner(out)
    results = measure(examiner, corpus, recipe, report)
    for name, samples in further.items():
        results.append(examiner.measured(f"{name} (not in-domain)", samples, seed=0))
    mixed = [*corpus.cold_dev[: len(corpus.jade_held_out)], *corpus.jade_held_out]
    facts = CardFacts(
        parameters=parameter_count(out),
        recipe=recipe,
        counts=corpus.counts,
        rows=len(corpus.train),
        dev=len(corpus.cold_dev),
        held_out={
            "COLD": len(corpus.cold_held_out),
            "JADE": len(corpus.jade_held_out),
            PAIRS.name: len(corpus.pairs_held_out),
        },
        context=context_tokens_of(out, None),
        temperature=temperature_of(out),
        results=results,
        baselines=shortcut_baselines(corpus.jade_held_out),
        agreement=agreement(examiner, mixed, recipe.seed),
    )
    write_card(out, facts)


def build_checkpoint(corpus: Corpus, out: Path, recipe: TinyRecipe, report: Report) -> None:
    """Train everything on the corpus; its two stages are the language model's, the table learns from all rows at once.

    Where the corpus has no real rows there is one stage, and where it has no synthetic ones likewise.
    """
    tokenizer = train_tokenizer(corpus.train)
    report(f"tokenizer of {tokenizer.get_vocab_size():,} entries")
    trainer = Trainer(tokenizer, recipe, report)
    if corpus.synthetic:
        trainer.fit(corpus.synthetic, recipe.synthetic_epochs, lambda done: report(f"synthetic stage: epoch {done}"))
    if corpus.real:
        # The synthetic rows come along, lest they be forgotten.
        trainer.fit(corpus.train, recipe.epochs, lambda done: report(f"real stage: epoch {done}"))
    add_table(trainer, corpus, recipe, report)
    save_checkpoint(trainer.model, tokenizer, out)
    save_temperature(out, 1.0)


def add_table(trainer: Trainer, corpus: Corpus, recipe: TinyRecipe, report: Report) -> None:
    """Fit the n-gram table on the training rows, and its share against the language model's on COLD's dev rows."""
    model = trainer.model
    # What is saved and served is rounded: the shares are fitted to that.
    model.bfloat16()
    model.float()  # type: ignore[no-untyped-call]
    config = model.config
    weights = fit_table([trainer.encoder.encode(sample) for sample in corpus.train], config, recipe.table)
    model.ngram_weights.data = weights.bfloat16().float()
    dev = [trainer.encoder.encode(windowed(sample)[0]) for sample in corpus.cold_dev]
    sums = presence([example.prompt for example in dev], config).sums(model.ngram_weights.detach())
    unsafe = torch.tensor([example.truth is Label.UNSAFE for example in dev])
    shares = fit_shares(lm_margins(model, dev), sums, unsafe)
    config.lm_share, config.ngram_share, config.margin_bias = shares
    report("margin = {:.3f} language model + {:.3f} table + {:.3f}".format(*shares))


def calibrate(samples: Sequence[Sample], out: Path, report: Report) -> None:
    """Fit the temperature on samples that nothing was trained on, and store it with the checkpoint."""
    examiner = Examiner(out)
    fit = fit_temperature(*examiner.ask(samples).margins(examiner.as_loaded))
    save_temperature(out, round(fit.temperature, 4))
    report(f"temperature {fit.temperature:.3f}")


def measure(examiner: Examiner, corpus: Corpus, recipe: TinyRecipe, report: Report) -> list[Measured]:
    """Score mode's results on the held-out sets."""
    sets = {
        "COLD, held out": corpus.cold_held_out,
        "COLD dev (chose the recipe)": corpus.cold_dev,
        "written pairs, held out": corpus.pairs_held_out,
        "JADE, held out": corpus.jade_held_out,
        "JADE, held out, unsafe behind a refusal and safe made longer": [
            disguise(sample, recipe.seed) for sample in corpus.jade_held_out
        ],
    }
    results = []
    for name, samples in sets.items():
        found = examiner.measured(name, samples, seed=0)
        results.append(found)
        values = ((metric, found.metrics.value(metric)) for metric in ("accuracy", "auroc", "ece"))
        report(f"{name}: " + " ".join(f"{metric} {'-' if v is None else f'{v:.4f}'}" for metric, v in values))
    return results


@dataclass(frozen=True)
class Agreement:
    """The number of items, of those with one label in both modes, and of those that generate mode gave none."""

    items: int
    agreed: int
    unparseable: int


def agreement(examiner: Examiner, samples: Sequence[Sample], seed: int, size: int = AGREEMENT_SAMPLE) -> Agreement:
    """The agreement of score and generate mode on a sample."""
    rng = random.Random(seed)  # noqa: S311 - reproducible sample, not a secret
    drawn = rng.sample(list(samples), min(size, len(samples)))
    scored = examiner.ask(drawn).verdicts(examiner.as_loaded)
    pairs = list(zip(scored, examiner.generate(drawn), strict=True))
    agreed = sum(score.label is not None and score.label is written.label for score, written in pairs)
    return Agreement(len(pairs), agreed, sum(written.outcome is Outcome.UNPARSEABLE for _, written in pairs))


def shortcut_baselines(samples: Sequence[Sample]) -> list[Measured]:
    """The results of rules that read nothing: refusal words alone, the length alone."""
    responses = [sample.item.response for sample in samples]
    lengths = sorted(map(len, responses))
    median = lengths[len(lengths) // 2]
    rules = {
        "refusal words alone": [not _REFUSALS.search(response) for response in responses],
        "length above the median alone": [len(response) > median for response in responses],
    }
    truths = [sample.label for sample in samples]
    return [
        Measured(name, metrics_of(truths, [_verdict(seq, unsafe) for seq, unsafe in enumerate(found)], resamples=0))
        for name, found in rules.items()
    ]


def _verdict(seq: int, unsafe: bool) -> Verdict:  # noqa: FBT001 - a rule's answer
    return Verdict(seq=seq, outcome=Outcome.SCORED, label=Label.UNSAFE if unsafe else Label.SAFE)


def parameter_count(folder: Path) -> int:
    """Parameters in the checkpoint's weights; the tied head is stored once."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - not a mapping


@dataclass(frozen=True)
class CardFacts:
    """The content of the card of one run."""

    parameters: int
    recipe: TinyRecipe
    counts: dict[str, int]
    rows: int
    dev: int
    held_out: Mapping[str, int]
    context: int
    temperature: float
    results: Sequence[Measured]
    baselines: Sequence[Measured]
    agreement: Agreement


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write the card into the checkpoint's folder; its text is card.md."""
    template = Template((files("recipes.libra_tiny") / "card.md").read_text(encoding="utf-8"))
    result_head = ["set", "n", "accuracy", "AUROC", "ECE", "macro-F1", "recall unsafe", "recall safe", "unparseable"]
    baselines = [
        (found.name, f"{found.metrics.value('accuracy') or 0:.3f}", f"{macro_f1(found.metrics):.3f}")
        for found in facts.baselines
    ]
    text = template.substitute(
        parameters=f"{facts.parameters / 1e6:.1f}",
        sources=table(["source", "licence", "what"], _SOURCES),
        counts=table(["part of the training set", "records"], [(name, f"{n:,}") for name, n in facts.counts.items()]),
        dev=f"{facts.dev:,}",
        held_out=", ".join(f"{count:,} of {name}" for name, count in facts.held_out.items()),
        temperature=facts.temperature,
        window=WINDOW_CHARS,
        context=facts.context,
        rows=f"{facts.rows:,}",
        seed=facts.recipe.seed,
        epochs=facts.recipe.epochs,
        synthetic_epochs=facts.recipe.synthetic_epochs,
        settings=table(["setting", "value"], facts.recipe.settings().items()),
        results=table(result_head, map(_result_row, facts.results)),
        agreed=facts.agreement.agreed,
        asked=facts.agreement.items,
        unreadable=facts.agreement.unparseable,
        baselines=table(["rule", "accuracy", "macro-F1"], baselines),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _result_row(found: Measured) -> tuple[Any, ...]:
    recalls = (found.metrics.value(name) for name in ("recall_unsafe", "recall_safe"))
    return (
        found.name,
        f"{found.metric('accuracy').n:,}",
        *(cell(found.metric(name)) for name in ("accuracy", "auroc", "ece")),
        f"{macro_f1(found.metrics):.3f}",
        *("-" if recall is None else f"{recall:.3f}" for recall in recalls),
        f"{found.metric('unparseable').value:.0f}",
    )
