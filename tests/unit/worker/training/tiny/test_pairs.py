"""The written question and answer pairs: what `recipes/libra_tiny/data/README.md` says of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final

import pytest

from recipes import libra_tiny
from schemas.items import LibraRecord
from schemas.taxonomy import SUBCATEGORIES, find_scenario, find_subcategory

PAIRS: Final = Path(libra_tiny.__file__).parent / "data" / "pairs.jsonl"
REFUSAL_WORDS: Final = (
    *("抱歉", "对不起", "不能", "无法", "没法", "帮不", "不会帮"),
    *("不可以", "不建议", "不提供", "我不"),
)
LEAK_BOUND: Final = 0.6

Row = dict[str, str]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [json.loads(line) for line in PAIRS.read_text().splitlines()]


def test_every_row_is_a_benchmark_record_with_a_truth_and_a_known_subcategory(rows: list[Row]) -> None:
    for row in rows:
        item = LibraRecord.model_validate(row).to_item()
        scenario, subcategory = find_scenario(item.category), find_subcategory(item.subcategory)
        assert item.truth is not None
        assert scenario is not None
        assert subcategory is not None
        assert subcategory.scenario == scenario.code
    assert len({row["sub_category_name"] for row in rows}) == len(SUBCATEGORIES)


def test_there_are_at_least_600_and_labels_kinds_and_splits_are_balanced(rows: list[Row]) -> None:
    assert len(rows) >= 600
    labels = Counter(row["label"] for row in rows)
    assert labels["安全"] == labels["不安全"]
    for kind, count in Counter(row["kind"] for row in rows).items():
        tested = sum(row["split"] == "test" for row in rows if row["kind"] == kind)
        assert count >= 75, kind
        assert tested / count == pytest.approx(1 / 3, abs=0.02), kind
        assert {row["label"] for row in rows if row["kind"] == kind} == {
            "安全" if kind.startswith("safe") else "不安全"
        }


def test_no_answer_or_id_is_there_twice_and_each_question_has_one_answer_of_each_label(rows: list[Row]) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["response"] for row in rows}) == len(rows)
    by_question = defaultdict(list)
    for row in rows:
        by_question[row["question"]].append(row["label"])
    assert all(sorted(labels) == ["不安全", "安全"] for labels in by_question.values())


def test_no_question_of_the_test_part_resembles_one_of_the_training_part(rows: list[Row]) -> None:
    def bigrams(text: str) -> set[str]:
        return {text[at : at + 2] for at in range(len(text) - 1)}

    train = [bigrams(row["question"]) for row in rows if row["split"] == "train"]
    test = [bigrams(row["question"]) for row in rows if row["split"] == "test"]
    assert max(len(a & b) / len(a | b) for a in train for b in test) < 0.4


@pytest.mark.parametrize(
    "feature",
    [
        lambda text: len(text) // 20,
        lambda text: any(word in text for word in REFUSAL_WORDS),
        lambda text: (len(text) // 20, any(word in text for word in REFUSAL_WORDS)),
        lambda text: (len(text) // 10, any(word in text for word in REFUSAL_WORDS)),
    ],
    ids=["length", "refusal", "both", "both, finer"],
)
def test_length_and_refusal_words_do_not_separate_the_labels(
    rows: list[Row], feature: Callable[[str], Hashable]
) -> None:
    counts: defaultdict[Hashable, list[int]] = defaultdict(lambda: [1, 1])
    for row in rows:
        if row["split"] == "train":
            counts[feature(row["response"])][row["label"] == "不安全"] += 1
    scored = [(counts[feature(row["response"])], row["label"] == "不安全") for row in rows if row["split"] == "test"]
    unsafe = [unsafes / (safes + unsafes) for (safes, unsafes), truth in scored if truth]
    safe = [unsafes / (safes + unsafes) for (safes, unsafes), truth in scored if not truth]
    wins = sum((a > b) + 0.5 * (a == b) for a in unsafe for b in safe)
    assert 1 - LEAK_BOUND < wins / (len(unsafe) * len(safe)) < LEAK_BOUND
