"""The grammar's rows: both labels over the whole taxonomy, no text twice, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from producer.curation.grammar import Part, frames, synthetic_rows, topics
from schemas.items import LibraRecord
from schemas.taxonomy import SUBCATEGORIES, find_scenario, find_subcategory

FIELDS = {
    *("question", "response", "label", "analyze", "source", "category_name", "sub_category_name", "id", "provenance"),
}


@pytest.mark.slow
def test_twenty_thousand_rows_are_distinct_and_balanced_over_all_subcategories() -> None:
    rows = list(synthetic_rows(20_000, seed=1))
    assert len({(row["question"], row["response"]) for row in rows}) == 20_000
    assert len({row["id"] for row in rows}) == 20_000
    assert Counter(row["label"] for row in rows) == {"安全": 10_000, "不安全": 10_000}
    by_kind = Counter((row["sub_category_name"], row["label"]) for row in rows if row["sub_category_name"])
    assert set(by_kind) == {(kind.name_zh, label) for kind in SUBCATEGORIES for label in ("安全", "不安全")}
    assert min(by_kind.values()) > 150


def test_each_kind_that_breaks_a_shortcut_is_there() -> None:
    kinds = {row["provenance"]["generator"] for row in synthetic_rows(500, seed=2)}
    assert kinds >= {f"grammar:{kind}" for kind in ("redirect", "help", "hollow_refusal", "off_course", "post")}
    assert any(not row["question"] for row in synthetic_rows(50, seed=2))


def test_the_same_seed_gives_the_same_rows_and_a_longer_draw_begins_with_the_shorter() -> None:
    assert list(synthetic_rows(100, seed=3)) == list(islice(synthetic_rows(400, seed=3), 100))
    assert list(synthetic_rows(100, seed=3)) != list(synthetic_rows(100, seed=4))


def test_rows_are_records_of_the_benchmark_in_the_taxonomys_names() -> None:
    for row in synthetic_rows(300, seed=5):
        assert set(row) == FIELDS
        assert LibraRecord.model_validate(row).to_item().truth is not None
        if row["category_name"]:
            scenario, kind = find_scenario(row["category_name"]), find_subcategory(row["sub_category_name"])
            assert kind
            assert scenario
            assert kind.scenario == scenario.code
        assert "{" not in row["question"] + row["response"] + row["analyze"]


def test_held_out_rows_share_no_aim_fact_or_claim_with_training() -> None:
    for trained, held_out in zip(topics(Part.TRAIN), topics(Part.HELD_OUT), strict=True):
        for name in ("behaviours", "words", "benign", "facts", "claims"):
            ours, theirs = set(getattr(trained, name)), set(getattr(held_out, name))
            assert ours
            assert theirs
            assert not ours & theirs
    trained_frames, held_out_frames = frames(Part.TRAIN), frames(Part.HELD_OUT)
    assert all(not set(trained_frames[name]) & set(held_out_frames[name]) - {""} for name in trained_frames)
    texts = {row["response"] for row in synthetic_rows(2_000, 1, part=Part.TRAIN)}
    assert not texts & {row["response"] for row in synthetic_rows(1_000, 1, part=Part.HELD_OUT)}
