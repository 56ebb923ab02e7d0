"""The whole way from the public data to a checkpoint folder with its model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from worker.guards.checkpoint import context_tokens_of
from worker.training.card import Facts, write_card
from worker.training.data import WINDOW_CHARS, Corpus, load_corpus, read_records
from worker.training.evaluate import Examiner, SetResult, agreement, examine, shortcut_baselines
from worker.training.hard_negatives import disguise
from worker.training.tokenizer import train_tokenizer
from worker.training.train import Recipe, Report, Shape, Trainer, save_checkpoint, settings_of


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
    """Train tokenizer and model on the corpus; `out` holds the newest epoch's checkpoint."""
    tokenizer = train_tokenizer(corpus.train)
    report(f"tokenizer of {tokenizer.get_vocab_size():,} entries")
    trainer = Trainer(tokenizer, shape, recipe, report)

    def after_epoch(done: int) -> None:
        save_checkpoint(trainer.model, tokenizer, out)
        report(f"checkpoint after epoch {done}")

    trainer.fit(corpus.train, after_epoch)


def measure(corpus: Corpus, out: Path, recipe: Recipe, report: Report) -> list[SetResult]:
    """Score mode's results on what was held out."""
    examiner = Examiner(out)
    disguised = [disguise(record, recipe.seed) for record in corpus.jade_held_out]
    sets = {
        "COLD dev": corpus.cold_dev,
        "JADE held out": corpus.jade_held_out,
        "JADE held out, unsafe behind a refusal and safe made longer": disguised,
    }
    results = []
    for name, records in sets.items():
        results.append(examine(examiner, name, records))
        report(f"{name}: accuracy {results[-1].accuracy:.4f} macro-F1 {results[-1].macro_f1:.4f}")
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
        held_out=len(corpus.jade_held_out),
        window=WINDOW_CHARS,
        context=context_tokens_of(out, None),
        results=results,
        baselines=shortcut_baselines(corpus.jade_held_out),
        agreement=agreement(Examiner(out), mixed, recipe.seed),
    )
    write_card(out, facts)


def parameter_count(folder: Path) -> int:
    """Parameters in the checkpoint's weights; the tied head is stored once."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - not a mapping
