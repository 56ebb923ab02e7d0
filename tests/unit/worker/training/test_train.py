"""A run of a few steps on synthetic rows, from nothing to a checkpoint that can be served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from schemas.items import LibraRecord
from schemas.verdicts import Outcome
from worker.guards.checkpoint import context_tokens_of
from worker.training.card import Facts, write_card
from worker.training.data import Row
from worker.training.encoding import RowEncoder, collate, common_prefix
from worker.training.evaluate import Agreement, Examiner, SetResult, confusion, examine, shortcut_baselines
from worker.training.hard_negatives import hard_negatives
from worker.training.ngrams import TableRecipe
from worker.training.train import Recipe, Shape, Trainer, save_checkpoint, settings_of

SHAPE = Shape(hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1)
TABLE = TableRecipe(slots=1 << 12)
RECIPE = Recipe(epochs=5, batch=16, peak_rate=6e-3, bf16=False, table=TABLE)


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


@pytest.fixture(scope="module")
def checkpoint(
    rows: list[Row], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, reports: list[str]
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    trainer = Trainer(tokenizer, SHAPE, RECIPE, reports.append)
    trainer.fit(rows, RECIPE.epochs, lambda done: reports.append(f"epoch {done}"))
    save_checkpoint(trainer.model, tokenizer, folder)
    return folder


def test_a_run_reports_every_epoch(checkpoint: Path, reports: list[str]) -> None:
    assert [line for line in reports if line.startswith("epoch")] == [f"epoch {n}" for n in range(1, RECIPE.epochs + 1)]


def test_a_trained_checkpoint_answers_in_score_mode(checkpoint: Path) -> None:
    records = hard_negatives(40, seed=1)
    verdicts = Examiner(checkpoint).score(records)
    assert all(verdict.outcome is Outcome.SCORED for verdict in verdicts)
    assert examine(Examiner(checkpoint), "own", records).counts.total == 40


def test_a_checkpoint_claims_no_longer_context_than_was_trained(
    checkpoint: Path, rows: list[Row], tokenizer: Tokenizer
) -> None:
    encoder = RowEncoder(tokenizer)
    assert context_tokens_of(checkpoint, None) == max(len(encoder.encode(row).ids) for row in rows)


def test_a_checkpoint_holds_all_that_serving_needs_in_bf16(checkpoint: Path) -> None:
    from safetensors.torch import load_file

    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names >= {"model.safetensors", "chat_template.jinja"}
    weights = load_file(checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights


def test_the_shared_prefix_changes_no_loss(rows: list[Row], tokenizer: Tokenizer) -> None:
    recipe = Recipe(bf16=False, token_dropout=0.0, table=TABLE)
    trainer = Trainer(tokenizer, SHAPE, recipe, print)
    trainer.model.eval()
    encoder = RowEncoder(tokenizer)
    examples = [encoder.encode(row) for row in rows[:6]]
    whole = common_prefix(examples)
    losses = [
        trainer._loss(collate(examples, length, 0, recipe.label_weight), whole[:length]).item()
        for length in (1, len(whole))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_equal_seeds_give_equal_weights(rows: list[Row], tokenizer: Tokenizer) -> None:
    found = []
    for _ in range(2):
        trainer = Trainer(tokenizer, SHAPE, Recipe(batch=16, threads=1, table=TABLE), lambda _: None)
        trainer.fit(rows[:64], 1, lambda _: None)
        found.append(trainer.model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_token_dropout_spares_the_answer(rows: list[Row], tokenizer: Tokenizer) -> None:
    trainer = Trainer(tokenizer, SHAPE, Recipe(token_dropout=1.0, table=TABLE), print)
    encoder = RowEncoder(tokenizer)
    examples = [encoder.encode(row) for row in rows[:6]]
    batch = collate(examples, 1, 0, 3.0)
    dropped = trainer._drop_tokens(batch)
    for number, example in enumerate(examples):
        start = example.answer - 1
        assert dropped[number, start : len(example.ids) - 2].tolist() == example.ids[start + 1 : -1]
        assert dropped[number, :5].tolist() == [0] * 5


def test_no_label_counts_as_wrong() -> None:
    records = [LibraRecord(id=1, response="字", label="安全"), LibraRecord(id=2, response="字", label="不安全")]
    assert confusion(records, [None, None]) == (0, 1, 1, 0)


def test_the_card_tells_what_was_measured(tmp_path: Path) -> None:
    records = hard_negatives(20, seed=1)
    result = SetResult("some set", confusion(records, [None] * 20), unparseable=20)
    facts = Facts(
        parameters=3_600_000,
        settings=settings_of(SHAPE, RECIPE),
        counts={"some part": 1_234},
        rows=1_300,
        dev=10,
        held_out={"some set": 20},
        window=300,
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
        "| some set | 20 | - |",
        "20 of some set",
        "temperature 1.25",
        "for 19 of 20",
        "not been reviewed",
    ):
        assert fact in card
    assert "$" not in card
