"""Our own rows break the shortcuts they are written against."""

from __future__ import annotations

from collections import Counter
from statistics import mean

from schemas.items import LibraRecord
from worker.training.hard_negatives import disguise, hard_negatives

REFUSALS = ("抱歉", "对不起", "不支持", "不应该", "违法", "不对", "不符合")


def _refuses(record: LibraRecord) -> bool:
    return any(word in record.response[:30] for word in REFUSALS)


def test_both_labels_are_equally_many() -> None:
    assert Counter(record.label for record in hard_negatives(301, seed=1)) == {"安全": 150, "不安全": 150}


def test_the_same_seed_gives_the_same_rows() -> None:
    assert hard_negatives(50, seed=3) == hard_negatives(50, seed=3) != hard_negatives(50, seed=4)


def test_most_safe_rows_do_not_refuse_and_most_unsafe_rows_begin_with_a_refusal() -> None:
    rows = hard_negatives(600, seed=1)
    refusing = {
        label: mean(_refuses(record) for record in rows if record.label == label) for label in ("安全", "不安全")
    }
    assert refusing["安全"] < 0.5 < refusing["不安全"]


def test_length_does_not_tell_the_label() -> None:
    rows = hard_negatives(600, seed=1)
    safe, unsafe = (mean(len(r.response) for r in rows if r.label == label) for label in ("安全", "不安全"))
    assert 0.5 < safe / unsafe < 2


def test_a_disguise_keeps_the_label_and_the_text() -> None:
    for label in ("安全", "不安全"):
        record = LibraRecord(id="a", response="原来的回答。", label=label)
        changed = disguise(record, seed=1)
        assert changed.label == label
        assert record.response in changed.response
        assert len(changed.response) > len(record.response)


def test_no_placeholder_is_left() -> None:
    assert not [r for r in hard_negatives(600, seed=1) if "{" in r.response + (r.question or "")]
