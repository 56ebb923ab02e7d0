import json
from collections import Counter, defaultdict
from importlib.resources import files

import pytest

from schemas.items import Item, Label, LibraRecord
from schemas.taxonomy import SCENARIOS, SUBCATEGORIES, find_scenario, find_subcategory

DATA = files("producer") / "data"
SOURCES = ("demo-qa", "demo-post", "demo-tricky")
FIELDS = ["source", "category_name", "sub_category_name", "question", "response", "label", "analyze", "id"]
REFUSALS = ("抱歉", "对不起", "不好意思", "很遗憾", "很抱歉", "我不能", "我无法", "作为")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    text = (DATA / "demo.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def items(rows: list[dict[str, str]]) -> list[Item]:
    return [LibraRecord.model_validate(row).to_item() for row in rows]


def refuses(item: Item) -> bool:
    return item.response.startswith(REFUSALS)


def share_of_unsafe(items: list[Item]) -> float:
    return sum(item.truth is Label.UNSAFE for item in items) / len(items)


def test_every_row_has_the_benchmarks_fields_in_their_order_and_a_label(rows: list[dict[str, str]]) -> None:
    assert all(list(row) == FIELDS for row in rows)
    assert {row["label"] for row in rows} == {"安全", "不安全"}
    assert all(row["analyze"].endswith("。") for row in rows)


def test_there_are_about_three_hundred_items(items: list[Item]) -> None:
    assert 290 <= len(items) <= 320


def test_ids_count_up_without_a_gap(items: list[Item]) -> None:
    assert [item.id for item in items] == [f"demo-{n:04d}" for n in range(1, len(items) + 1)]


def test_no_text_appears_twice(items: list[Item]) -> None:
    assert len({item.content_hash for item in items}) == len(items)
    assert len({item.response for item in items}) == len(items)
    questions = [item.question for item in items if item.question]
    assert len(set(questions)) == len(questions)


def test_texts_are_between_ten_and_two_hundred_and_fifty_characters(items: list[Item]) -> None:
    assert all(10 <= len(item.response) <= 250 for item in items)


def test_every_subcategory_is_there_with_both_labels_under_its_own_scenario(items: list[Item]) -> None:
    labels: dict[str, set[Label | None]] = defaultdict(set)
    for item in items:
        scenario, sub = find_scenario(item.category), find_subcategory(item.subcategory)
        assert scenario is not None
        assert sub in scenario.subcategories
        labels[sub.code].add(item.truth)
    assert labels == {sub.code: {Label.SAFE, Label.UNSAFE} for sub in SUBCATEGORIES}


def test_every_subcategory_has_seven_or_eight_items(items: list[Item]) -> None:
    assert set(Counter(item.subcategory for item in items).values()) <= {7, 8}


def test_labels_are_balanced_overall_and_in_each_source(items: list[Item]) -> None:
    assert 0.4 <= share_of_unsafe(items) <= 0.6
    for source in SOURCES:
        assert 0.4 <= share_of_unsafe([item for item in items if item.source == source]) <= 0.6


def test_the_sources_are_our_own_three(items: list[Item]) -> None:
    assert {item.source for item in items} == set(SOURCES)


def test_posts_have_no_question_and_pairs_have_one(items: list[Item]) -> None:
    assert not any(item.question for item in items if item.source == "demo-post")
    assert all(item.question for item in items if item.source == "demo-qa")


def test_a_refusal_phrase_at_the_start_gives_the_label_away_in_neither_direction(items: list[Item]) -> None:
    counts = Counter((refuses(item), item.truth) for item in items)
    assert counts[True, Label.UNSAFE] >= 30
    assert counts[True, Label.SAFE] >= 10
    assert counts[False, Label.SAFE] >= 60
    assert counts[False, Label.UNSAFE] >= 60


def test_the_readme_states_the_counts_of_the_data(items: list[Item]) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    groups = {source: [i for i in items if i.source == source] for source in SOURCES}
    groups |= {f"{s.name} ({s.name_zh})": [i for i in items if i.category == s.name_zh] for s in SCENARIOS}
    groups["all"] = items
    for name, group in groups.items():
        unsafe = sum(item.truth is Label.UNSAFE for item in group)
        assert f"| {name} | {len(group) - unsafe} | {unsafe} | {len(group)} |" in readme
