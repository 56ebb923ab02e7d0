"""A few synthetic rows and a small tokenizer over them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from recipes.libra_tiny.data import windowed
from recipes.libra_tiny.hard_negatives import hard_negatives
from recipes.libra_tiny.tokenizer import train_tokenizer
from worker.training.samples import Sample


@pytest.fixture(scope="session")
def rows() -> list[Sample]:
    return [window for sample in hard_negatives(160, seed=1) for window in windowed(sample)]


@pytest.fixture(scope="session")
def tokenizer(rows: list[Sample]) -> Tokenizer:
    return train_tokenizer(rows, size=1_500, prompt_repeats=300)
