"""Checkpoint folders and guards, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import qwen_tokenizer_json, small_tokenizer, write_checkpoint
from worker.guards.libra import LibraGuard
from worker.guards.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("qwen"), qwen_tokenizer_json(), generation={"eos_token_id": [151_645, 151_643]}
    )


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> LibraGuard:
    return LibraGuard(qwen_folder, name="qwen", model="Qwen/qwen")


@pytest.fixture(scope="session")
def qwen_words(qwen_folder: Path) -> Vocabulary:
    return Vocabulary(qwen_folder)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = small_tokenizer(added=("<think>", "[[tool]]"))
    return write_checkpoint(tmp_path_factory.mktemp("small"), tokenizer, context_tokens=1_024)


@pytest.fixture(scope="session")
def small(small_folder: Path) -> LibraGuard:
    return LibraGuard(small_folder, name="small", model="small")


@pytest.fixture(scope="session")
def small_words(small_folder: Path) -> Vocabulary:
    return Vocabulary(small_folder)
