"""The whole way from the data to the bundled guard: tokenizer, two stages, n-gram table, calibration, model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open

from schemas.items import Label, LibraRecord
from worker.guards.checkpoint import context_tokens_of, temperature_of
from worker.training.calibration import fit_temperature
from worker.training.card import Facts, write_card
from worker.training.data import PAIRS, WINDOW_CHARS, Corpus, Row, load_corpus, read_records, rows_of, truth
from worker.training.evaluate import Examiner, SetResult, agreement, examine, margin_of, shortcut_baselines
from worker.training.hard_negatives import disguise
from worker.training.ngrams import fit_shares, fit_table, presence
from worker.training.tokenizer import train_tokenizer
from worker.training.train import (
    Recipe,
    Report,
    Shape,
    Trainer,
    lm_margins,
    save_checkpoint,
    save_temperature,
    settings_of,
)

COLD_HELD_OUT: Final = "COLD, held out"


def build_guard(data: Path, out: Path, recipe: Recipe, also: Sequence[Path], report: Report) -> None:
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
    further = {path.name: read_records(path) for path in also}
    corpus = load_corpus(data, recipe.seed)
    build_checkpoint(corpus, out, Shape(), recipe, report)
    results = measure(corpus, out, recipe, report)
    results += [examine(Examiner(out), f"{name} (not in-domain)", records) for name, records in further.items()]
    describe(corpus, out, recipe, results)


def build_checkpoint(corpus: Corpus, out: Path, shape: Shape, recipe: Recipe, report: Report) -> None:
    """Train everything on the corpus; its two stages are the language model's, the table learns from all rows at once.

    Where the corpus has no real rows there is one stage, and where it has no synthetic ones likewise.
    """
    tokenizer = train_tokenizer(corpus.train)
    report(f"tokenizer of {tokenizer.get_vocab_size():,} entries")
    trainer = Trainer(tokenizer, shape, recipe, report)
    if corpus.synthetic:
        trainer.fit(corpus.synthetic, recipe.synthetic_epochs, lambda done: report(f"synthetic stage: epoch {done}"))
    if corpus.real:
        # The synthetic rows come along, lest they be forgotten.
        trainer.fit(corpus.train, recipe.epochs, lambda done: report(f"real stage: epoch {done}"))
    add_table(trainer, corpus, recipe, report)
    save_checkpoint(trainer.model, tokenizer, out)
    save_temperature(out, 1.0)
    calibrate(corpus.cold_dev, out, report)


def add_table(trainer: Trainer, corpus: Corpus, recipe: Recipe, report: Report) -> None:
    """Fit the n-gram table on the training rows, and on COLD's dev rows what it counts beside the language model."""
    model = trainer.model
    # What is saved and served is rounded: the shares are fitted to that.
    model.bfloat16().float()
    config = model.config
    weights = fit_table([trainer.encoder.encode(row) for row in corpus.train], config, recipe.table)
    model.ngram_weights.data = weights.bfloat16().float()
    dev = [trainer.encoder.encode(row) for row in _first_windows(corpus.cold_dev)]
    sums = presence([example.ids[: example.label] for example in dev], config).sums(model.ngram_weights.detach())
    unsafe = torch.tensor([example.truth is Label.UNSAFE for example in dev])
    shares = fit_shares(lm_margins(model, dev), sums, unsafe)
    config.lm_share, config.ngram_share, config.margin_bias = shares
    report("margin = {:.3f} language model + {:.3f} table + {:.3f}".format(*shares))


def calibrate(records: Sequence[LibraRecord], out: Path, report: Report) -> None:
    """Fit the temperature on records that nothing was trained on, and store it with the checkpoint."""
    scored = [(v.p_unsafe, truth(r)) for v, r in zip(Examiner(out).score(records), records, strict=True)]
    known = [(p, label) for p, label in scored if p is not None]
    fit = fit_temperature([margin_of(p) for p, _ in known], [label is Label.UNSAFE for _, label in known])
    save_temperature(out, round(fit.temperature, 4))
    report(f"temperature {fit.temperature:.3f}")


def measure(corpus: Corpus, out: Path, recipe: Recipe, report: Report) -> list[SetResult]:
    """Score mode's results on what was held out."""
    examiner = Examiner(out)
    disguised = [disguise(record, recipe.seed) for record in corpus.jade_held_out]
    sets = {
        COLD_HELD_OUT: corpus.cold_held_out,
        "COLD dev (chose the recipe)": corpus.cold_dev,
        "written pairs, held out": corpus.pairs_held_out,
        "JADE, held out": corpus.jade_held_out,
        "JADE, held out, unsafe behind a refusal and safe made longer": disguised,
    }
    results = []
    for name, records in sets.items():
        found = examine(examiner, name, records)
        results.append(found)
        report(f"{name}: " + " ".join(f"{metric} {found.value(metric):.4f}" for metric in ("accuracy", "auroc", "ece")))
    return results


def describe(corpus: Corpus, out: Path, recipe: Recipe, results: Sequence[SetResult]) -> None:
    """Write the model card."""
    mixed = [*corpus.cold_dev[: len(corpus.jade_held_out)], *corpus.jade_held_out]
    facts = Facts(
        parameters=parameter_count(out),
        settings=settings_of(Shape(), recipe),
        counts=corpus.counts,
        rows=len(corpus.train),
        dev=len(corpus.cold_dev),
        held_out={
            "COLD": len(corpus.cold_held_out),
            "JADE": len(corpus.jade_held_out),
            PAIRS.name: len(corpus.pairs_held_out),
        },
        window=WINDOW_CHARS,
        context=context_tokens_of(out, None),
        temperature=temperature_of(out),
        results=results,
        baselines=shortcut_baselines(corpus.jade_held_out),
        agreement=agreement(Examiner(out), mixed, recipe.seed),
    )
    write_card(out, facts)


def parameter_count(folder: Path) -> int:
    """Parameters in the checkpoint's weights; the tied head is stored once."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - not a mapping


def _first_windows(records: Sequence[LibraRecord]) -> list[Row]:
    return [rows_of(record)[0] for record in records]
