"""What all prompts begin with is encoded once, and the ids are those of the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.guards import Mode
from schemas.messages import ChunkItem
from tests.support.checkpoints import qwen_tokenizer_json, write_checkpoint
from worker.guards.libra import LibraGuard
from worker.guards.vocabulary import Vocabulary

LEADS = ("user\n# 对话\n人类的问题：", "a\nb", "no line", "", "line\n", "x\n  y", "user\n你\n\n好：")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen"), qwen_tokenizer_json(), context_tokens=32_768)


@pytest.fixture(scope="module")
def words(folder: Path) -> Vocabulary:
    return Vocabulary(folder)


@given(st.sampled_from(LEADS), st.lists(st.text(max_size=20), max_size=4))
@settings(deadline=None)
def test_ids_behind_a_lead_are_those_of_the_whole_text(words: Vocabulary, lead: str, ends: list[str]) -> None:
    texts = [lead + end for end in ends]

    assert words.batch_ids_behind(lead, texts) == words.batch_ids(texts)


def test_libras_instruction_is_encoded_once_and_not_for_every_item(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = LibraGuard(folder, name="qwen2.5-0.5b-instruct", model="m")
    items = [ChunkItem(seq=at, question=f"问题 {at}", response="回答") for at in range(5)]
    before = guard.render(items, Mode.SCORE)
    seen: list[str] = []
    plain = Vocabulary.batch_ids

    def noted(self: Vocabulary, texts: Sequence[str], *, first: bool = False) -> object:
        seen.extend(texts)
        return plain(self, texts, first=first)

    monkeypatch.setattr(Vocabulary, "batch_ids", noted)
    assert guard.render(items, Mode.SCORE) == before
    assert len(seen) == 5
    assert all(text.startswith("人类的问题：") for text in seen)


def test_a_tokenizer_that_reads_a_line_otherwise_by_itself_is_given_the_whole(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Vocabulary.batch_ids

    def prefixed(self: Vocabulary, texts: Sequence[str], *, first: bool = False) -> object:
        return plain(self, [f" {text}" for text in texts], first=first)

    monkeypatch.setattr(words, "_leads", {})
    monkeypatch.setattr(Vocabulary, "batch_ids", prefixed)
    texts = ["a\nb c", "a\nb d"]
    assert words.batch_ids_behind("a\nb", texts) == words.batch_ids(texts)
    assert words._leads == {("a\nb", False): (words.batch_ids([""])[0][:0], 0)}
