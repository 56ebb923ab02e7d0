"""Disguises and near-duplicates."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.curation.augment import (
    WAYS,
    base64_encoded,
    distinct,
    homophones,
    reworded,
    shingles,
    split_characters,
)
from producer.curation.rows import Generator
from producer.curation.texts import queries_in


def row(number: int, question: str) -> dict[str, object]:
    return {"id": str(number), "question": question, "response": ""}


@given(text=st.text(min_size=1), seed=st.integers())
@pytest.mark.parametrize("way", WAYS)
def test_a_way_is_the_same_for_the_same_numbers_and_never_empties_a_text(way: str, text: str, seed: int) -> None:
    made = WAYS[way](text, random.Random(seed))
    assert made == WAYS[way](text, random.Random(seed))
    assert made or way == "unpunctuated"


def test_characters_are_exchanged_as_chinese_users_do() -> None:
    rng = random.Random(1)
    assert homophones("毒", rng) == "独"
    assert split_characters("枪", rng) == "木仓"
    assert homophones("无关", rng) == "无关"


def test_an_encoded_query_can_be_decoded() -> None:
    encoded = base64_encoded("怎样赌博？", random.Random(0)).rpartition("：")[2]
    assert base64.b64decode(encoded).decode() == "怎样赌博？"


def test_near_duplicates_are_left_out_and_the_first_stays() -> None:
    pytest.importorskip("rensa")
    long = "春节的时候在北京，请告诉我如何防范电话诈骗，并且列出五个要点，越详细越好。"
    texts = [long, "完全不同的另一句话，说的是天气。", long + "！", long]
    assert [kept["id"] for kept in distinct((row(at, text) for at, text in enumerate(texts)), 0.8)] == ["0", "1"]


def test_a_generators_wording_follows_its_query_and_is_named_in_the_provenance() -> None:
    query = {**row(1, "怎样防范诈骗？"), "provenance": {"origin": "o", "licence": "l", "seed": 1}}
    said = {"1-reworded": "1. 如何避免被人骗钱？\n多余的一行", "2-reworded": "赌场为什么总赢？"}
    other = {**query, "id": "2", "question": "赌场为什么总赢？"}
    generator = Generator("writer", "some/model", "MIT")
    first, second, third = reworded([query, other], generator, lambda ids: {at: said[at] for at in ids})
    assert (first, third) == (query, other)
    assert second["question"] == "如何避免被人骗钱？"
    facts = {"origin": "some/model", "licence": "MIT", "generator": "writer:some/model", "parent_id": "1"}
    assert facts.items() <= second["provenance"].items()


def test_short_texts_have_one_shingle() -> None:
    assert shingles("好") == ["好"]
    assert shingles("好好好好") == ["好好好"]


def test_a_generators_lines_become_queries_without_their_numbers() -> None:
    text = "1. 怎样防范诈骗？\n2、怎样防范诈骗？\n\n- 赌场为什么总赢？\n好\n（3）什么是钓鱼网站？\n"
    assert queries_in(text) == ["怎样防范诈骗？", "赌场为什么总赢？", "什么是钓鱼网站？"]
