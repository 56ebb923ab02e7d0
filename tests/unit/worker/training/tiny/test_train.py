"""A run of a few steps on synthetic rows, from nothing to a checkpoint that can be served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from recipes.libra_tiny.build import Agreement, CardFacts, shortcut_baselines, write_card
from recipes.libra_tiny.hard_negatives import hard_negatives
from recipes.libra_tiny.ngrams import TableSettings
from recipes.libra_tiny.train import (
    Shape,
    TinyRecipe,
    TokenizerEncoder,
    Trainer,
    collate,
    common_prefix,
    save_checkpoint,
)
from schemas.items import Label
from schemas.verdicts import Outcome, Verdict
from worker.guards.checkpoint import context_tokens_of
from worker.training.evaluate import Examiner, Measured, metrics_of
from worker.training.samples import Sample

SMALL = {
    "shape": Shape(hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1),
    "table": TableSettings(slots=1 << 12),
}
RECIPE = TinyRecipe(epochs=5, batch_rows=16, learning_rate=6e-3, bf16=False, **SMALL)


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


@pytest.fixture(scope="module")
def checkpoint(
    rows: list[Sample], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, reports: list[str]
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    trainer = Trainer(tokenizer, RECIPE, reports.append)
    trainer.fit(rows, RECIPE.epochs, lambda done: reports.append(f"epoch {done}"))
    save_checkpoint(trainer.model, tokenizer, folder)
    return folder


def test_a_run_reports_every_epoch(checkpoint: Path, reports: list[str]) -> None:
    assert [line for line in reports if line.startswith("epoch")] == [f"epoch {n}" for n in range(1, RECIPE.epochs + 1)]


def test_a_trained_checkpoint_answers_in_score_mode(checkpoint: Path) -> None:
    records = hard_negatives(40, seed=1)
    examiner = Examiner(checkpoint)
    verdicts = examiner.ask(records).verdicts(examiner.as_loaded)
    assert all(verdict.outcome is Outcome.SCORED for verdict in verdicts)
    assert examiner.measured("own", records, seed=0).metric("accuracy").n == 40


def test_a_checkpoint_claims_no_longer_context_than_was_trained(
    checkpoint: Path, rows: list[Sample], tokenizer: Tokenizer
) -> None:
    encoder = TokenizerEncoder(tokenizer)
    assert context_tokens_of(checkpoint, None) == max(len(encoder.encode(row).ids) for row in rows)


def test_a_checkpoint_holds_all_that_serving_needs_in_bf16(checkpoint: Path) -> None:
    from safetensors.torch import load_file

    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names >= {"model.safetensors", "chat_template.jinja"}
    weights = load_file(checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights


def test_the_shared_prefix_changes_no_loss(rows: list[Sample], tokenizer: Tokenizer) -> None:
    recipe = TinyRecipe(bf16=False, token_dropout=0.0, **SMALL)
    trainer = Trainer(tokenizer, recipe, print)
    trainer.model.eval()
    encoder = TokenizerEncoder(tokenizer)
    examples = [encoder.encode(row) for row in rows[:6]]
    whole = common_prefix(examples)
    losses = [
        trainer._loss(collate(examples, length, 0, recipe.label_weight), whole[:length]).item()
        for length in (1, len(whole))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_equal_seeds_give_equal_weights(rows: list[Sample], tokenizer: Tokenizer) -> None:
    found = []
    for _ in range(2):
        trainer = Trainer(tokenizer, TinyRecipe(batch_rows=16, threads=1, **SMALL), lambda _: None)
        trainer.fit(rows[:64], 1, lambda _: None)
        found.append(trainer.model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_token_dropout_spares_the_answer(rows: list[Sample], tokenizer: Tokenizer) -> None:
    trainer = Trainer(tokenizer, TinyRecipe(token_dropout=1.0, **SMALL), print)
    encoder = TokenizerEncoder(tokenizer)
    examples = [encoder.encode(row) for row in rows[:6]]
    batch = collate(examples, 1, 0, 3.0)
    dropped = trainer._drop_tokens(batch)
    for number, example in enumerate(examples):
        start = example.answer - 1
        assert dropped[number, start : len(example.ids) - 2].tolist() == example.ids[start + 1 : -1].tolist()
        assert dropped[number, :5].tolist() == [0] * 5


def test_no_label_counts_as_wrong() -> None:
    unparseable = [Verdict(seq=seq, outcome=Outcome.UNPARSEABLE) for seq in range(2)]
    metrics = metrics_of(list(Label), unparseable)
    assert [metrics.value(name) for name in ("accuracy", "unparseable", "recall_safe", "recall_unsafe")] == [0, 2, 0, 0]


def test_the_card_tells_what_was_measured(tmp_path: Path) -> None:
    records = hard_negatives(20, seed=1)
    unparseable = [Verdict(seq=seq, outcome=Outcome.UNPARSEABLE) for seq in range(20)]
    result = Measured("some set", metrics_of([record.label for record in records], unparseable))
    facts = CardFacts(
        parameters=3_600_000,
        recipe=RECIPE,
        counts={"some part": 1_234},
        rows=1_300,
        dev=10,
        held_out={"some set": 20},
        context=328,
        temperature=1.25,
        results=[result],
        baselines=shortcut_baselines(records),
        agreement=Agreement(items=20, agreed=19, unparseable=1),
    )
    write_card(tmp_path, facts)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for fact in (
        "3.6 million",
        "| some part | 1,234 |",
        "| some set | 20 | 0.000 | - (",
        "| 20 |\n",
        "| learning_rate | 0.006 |",
        "| table: slots | 4096 |",
        "20 of some set",
        "temperature 1.25",
        "for 19 of 20",
        "not been reviewed",
    ):
        assert fact in card
    assert "$" not in card
