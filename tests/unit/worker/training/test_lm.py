"""Rows through the model: only the answer is learnt, and short cuts change no number."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from schemas.items import Label
from worker.training.examples import Example
from worker.training.lm import answer_loss, label_logprobs, load_lm, step_weight, training_batch

ROWS = [
    Example(array("i", [5, 6, 7, 8, 9, 10]), answer=3, label=4, truth=Label.SAFE),
    Example(array("i", [11, 12, 13, 14, 15, 16, 17, 18, 19]), answer=5, label=7, truth=Label.UNSAFE),
]


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load_lm(base, dtype=torch.float32)


def plain_losses(model: Any, row: Example) -> list[float]:
    """The negative log-likelihood of every id given those before it."""
    ids = torch.tensor([row.ids.tolist()])
    logits = model(input_ids=ids).logits[0, :-1]
    return functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()


@pytest.mark.parametrize("label_weight", [1.0, 4.0])
def test_the_loss_is_that_of_the_answers_alone_whatever_they_are_batched_with(model: Any, label_weight: float) -> None:
    expected = 0.0
    for row in ROWS:
        losses = plain_losses(model, row)
        expected += sum(losses[row.answer - 1 :]) + (label_weight - 1) * losses[row.label - 1]
    assert answer_loss(model, training_batch(ROWS, label_weight)).item() == pytest.approx(expected, rel=1e-5)


def test_no_id_of_a_prompt_is_a_target(model: Any) -> None:
    batch = training_batch(ROWS, 1.0)
    targets = batch.targets[batch.weights > 0].tolist()
    assert targets == [8, 9, 10, 16, 17, 18, 19]
    assert (batch.targets[batch.weights == 0] == -100).all()
    assert step_weight(ROWS, 4.0) == training_batch(ROWS, 4.0).weights.sum()


def test_labels_are_read_where_they_stand(model: Any) -> None:
    found = label_logprobs(model.eval(), ROWS, (20, 21), device=torch.device("cpu"))
    for row, logprobs in zip(ROWS, found, strict=True):
        logits = model(input_ids=torch.tensor([row.prompt.tolist()])).logits[0, -1]
        assert logprobs.tolist() == pytest.approx(logits.log_softmax(-1)[[20, 21]].tolist(), abs=1e-5)
