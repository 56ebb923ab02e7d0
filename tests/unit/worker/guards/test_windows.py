"""Windows over contents that are too long for one prompt."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from schemas.guards import Mode
from schemas.messages import ChunkItem
from worker.guards import libra
from worker.guards.libra import LibraGuard
from worker.guards.vocabulary import Vocabulary
from worker.guards.windows import pair_windows, pieces


def per_character(text: str) -> list[int]:
    return list(range(len(text)))


def distinct(length: int, start: int) -> str:
    return "".join(chr(start + at) for at in range(length))


@given(question=st.integers(0, 400), response=st.integers(1, 400), room=st.integers(1, 120))
def test_every_character_of_question_and_response_lies_in_a_window(question: int, response: int, room: int) -> None:
    texts = distinct(question, 0x4E00), distinct(response, 0x6E00)

    pairs = pair_windows(*texts, room, per_character)

    for text, found in zip(texts, zip(*pairs, strict=True), strict=True):
        assert set().union(*found) == set(text)
        assert all(piece in text for piece in found)
    assert all(len(q) + len(r) <= max(2, room) for q, r in pairs)


@given(
    texts=st.tuples(*[st.text(st.sampled_from("安全 ab\n😀é<|im_end|>"), min_size=1, max_size=2_000)] * 2),
    mode=st.sampled_from([Mode.SCORE, Mode.GENERATE]),
)
def test_every_prompt_of_a_long_content_fits_the_context(small: LibraGuard, texts: tuple[str, str], mode: Mode) -> None:
    (prompts,) = small.render([ChunkItem(seq=0, question=texts[0], response=texts[1])], mode)

    answer = small.max_new_tokens if mode is Mode.GENERATE else max(map(len, small.label_ids))
    assert all(len(prompt) + answer <= 1_024 for prompt in prompts)


def test_rendered_windows_hold_the_whole_content(small: LibraGuard, small_words: Vocabulary) -> None:
    question, response = (distinct(1_500, start) for start in (0x4E00, 0x6E00))

    (prompts,) = small.render([ChunkItem(seq=0, question=question, response=response)], Mode.SCORE)

    bodies = [small_words.decode(prompt).split("# 对话\n")[1] for prompt in prompts]
    assert len(bodies) > 2
    assert set(question + response) <= set("".join(bodies))
    assert "\ufffd" not in "".join(bodies)


def test_a_short_question_stands_whole_beside_every_piece_of_the_response() -> None:
    pairs = pair_windows("问题", distinct(100, 0x6E00), 20, per_character)

    assert len(pairs) > 5
    assert {question for question, _ in pairs} == {"问题"}


def test_neighbouring_pieces_overlap() -> None:
    text = distinct(100, 0x4E00)

    found = pieces(text, per_character(text), 16)

    assert all(left[-2:] == right[:2] for left, right in pairwise(found))


def test_a_character_of_several_tokens_is_never_torn() -> None:
    text = "😀" * 10
    four_tokens_each = [at // 4 for at in range(40)]

    found = pieces(text, four_tokens_each, 6)

    assert "".join(found).count("😀") >= 10
    assert all(set(piece) <= {"😀"} for piece in found)


def test_a_content_that_fits_is_one_prompt(qwen: LibraGuard) -> None:
    items = [ChunkItem(seq=at, question="问", response="答" * 50) for at in range(3)]

    assert [len(prompts) for prompts in qwen.render(items, Mode.SCORE)] == [1, 1, 1]
    assert libra.user_turn("问", "答").endswith("人类的问题：问\n大语言模型的回答：答\n")
