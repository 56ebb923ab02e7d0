"""Our own rows break the shortcuts they are written against."""

from __future__ import annotations

from collections import Counter
from statistics import mean

from recipes.libra_tiny.hard_negatives import disguise, hard_negatives
from schemas.items import Item, Label
from worker.training.samples import Sample

REFUSALS = ("抱歉", "对不起", "不支持", "不应该", "违法", "不对", "不符合")


def _refuses(sample: Sample) -> bool:
    return any(word in sample.item.response[:30] for word in REFUSALS)


def test_both_labels_are_equally_many() -> None:
    assert Counter(sample.label for sample in hard_negatives(301, seed=1)) == {Label.SAFE: 150, Label.UNSAFE: 150}


def test_the_same_seed_gives_the_same_rows() -> None:
    assert hard_negatives(50, seed=3) == hard_negatives(50, seed=3) != hard_negatives(50, seed=4)


def test_most_safe_rows_do_not_refuse_and_most_unsafe_rows_begin_with_a_refusal() -> None:
    rows = hard_negatives(600, seed=1)
    refusing = {label: mean(_refuses(sample) for sample in rows if sample.label is label) for label in Label}
    assert refusing[Label.SAFE] < 0.5 < refusing[Label.UNSAFE]


def test_length_does_not_tell_the_label() -> None:
    rows = hard_negatives(600, seed=1)
    safe, unsafe = (mean(len(r.item.response) for r in rows if r.label is label) for label in Label)
    assert 0.5 < safe / unsafe < 2


def test_a_disguise_keeps_the_label_and_the_text() -> None:
    for label in Label:
        sample = Sample(Item(id="a", response="原来的回答。"), label)
        changed = disguise(sample, seed=1)
        assert changed.label is label
        assert sample.item.response in changed.item.response
        assert len(changed.item.response) > len(sample.item.response)


def test_no_placeholder_is_left() -> None:
    assert not [r for r in hard_negatives(600, seed=1) if "{" in r.item.response + r.item.question]
