"""The fitted table tells labels by what only one of them says, and its share is what it is worth."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from recipes.libra_tiny.ngrams import TableSettings, fit_shares, fit_table, in_use, minimum, presence
from recipes.libra_tiny.train import Shape, TokenizerEncoder, new_model
from schemas.items import Label
from worker.training.examples import Example
from worker.training.samples import Sample

RECIPE = TableSettings(slots=1 << 16)
SHAPE = Shape(hidden=64, intermediate=96, layers=1, heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def examples(rows: list[Sample], tokenizer: Tokenizer) -> list[Example]:
    encoder = TokenizerEncoder(tokenizer)
    return [encoder.encode(row) for row in rows]


def test_the_table_tells_the_rows_it_was_fitted_on_apart(examples: list[Example], tokenizer: Tokenizer) -> None:
    config = new_model(tokenizer, SHAPE, RECIPE.slots).config
    table = fit_table(examples, config, RECIPE)
    sums = presence([example.ids[: example.label] for example in examples], config).sums(table)
    unsafe = torch.tensor([example.truth is Label.UNSAFE for example in examples])
    assert sums[unsafe].min() > sums[~unsafe].max()


def test_slots_that_one_text_alone_sets_weigh_nothing(examples: list[Example], tokenizer: Tokenizer) -> None:
    config = new_model(tokenizer, SHAPE, RECIPE.slots).config
    found = presence([example.ids[: example.label] for example in examples], config)
    used, kept = in_use(found, RECIPE)
    assert 0 < len(used) < len(found.slots.unique())
    counts = torch.bincount(found.slots, minlength=RECIPE.slots)
    assert used.tolist() == (counts >= 2).nonzero()[:, 0].tolist()
    assert torch.bincount(used[kept.slots], minlength=RECIPE.slots).tolist() == (counts * (counts >= 2)).tolist()
    assert set(fit_table(examples, config, RECIPE).nonzero()[:, 0].tolist()) <= set(used.tolist())


def test_dialogues_change_nothing_of_what_comments_say(
    examples: list[Example], rows: list[Sample], tokenizer: Tokenizer
) -> None:
    wide = TableSettings(slots=1 << 24)  # hardly two n-grams share a slot
    config = new_model(tokenizer, SHAPE, wide.slots).config
    comments = [example for example, row in zip(examples, rows, strict=True) if not row.item.question]
    of_comments = presence([example.ids[: example.label] for example in comments], config)
    assert 0 < len(comments) < len(examples)
    sums = [of_comments.sums(fit_table(part, config, wide)) for part in (comments, examples)]
    assert torch.allclose(*sums, atol=0.01)


def test_shares_find_the_logistic_model_that_made_the_labels() -> None:
    draw = torch.Generator().manual_seed(0)
    margins, sums = torch.randn(2, 20_000, generator=draw, dtype=torch.float64).unbind()
    unsafe = torch.rand(20_000, generator=draw, dtype=torch.float64) < torch.sigmoid(0.5 * margins + 2 * sums - 1)
    assert fit_shares(margins, sums, unsafe) == pytest.approx((0.5, 2.0, -1.0), abs=0.1)


def test_the_minimum_of_a_square_is_found() -> None:
    assert minimum(lambda at: (at - 3).square().sum(), torch.zeros(2), 50).tolist() == pytest.approx([3, 3])
