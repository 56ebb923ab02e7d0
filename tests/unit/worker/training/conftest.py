"""A few synthetic rows and a small tokenizer over them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from worker.training.data import Row, rows_of
from worker.training.hard_negatives import hard_negatives
from worker.training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    return [row for record in hard_negatives(160, seed=1) for row in rows_of(record)]


@pytest.fixture(scope="session")
def tokenizer(rows: list[Row]) -> Tokenizer:
    return train_tokenizer(rows, size=1_500, prompt_repeats=300)
