"""The data of a training run, and its held-out part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import DataError
from recipes.libra_tiny.data import (
    COLD_DEV,
    COLD_TRAIN,
    JADE,
    analysis_of,
    is_held_out,
    is_text_held_out,
    load_corpus,
    windowed,
    windows,
)
from schemas.items import Item, Label
from worker.training.recipe import DataFile
from worker.training.samples import Sample, read_samples


def sample(response: str, label: Label, category: str = "") -> Sample:
    return Sample(Item(id="a", response=response, category=category), label)


def _jade(number: int, kind: str) -> dict[str, str]:
    label = "安全" if kind == "s" else "不安全"
    return {
        "id": f"jade-medium-{number}-{kind}",
        "question": f"问题{number}",
        "response": f"回答{kind}{number}",
        "label": label,
    }


def _cold(number: int, text: str) -> dict[str, str]:
    return {"id": f"cold-{number}", "question": "", "response": text, "label": "不安全", "category_name": "gender"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps(_cold(n, f"评论{n}"), ensure_ascii=False) for n in range(20)]
    (tmp_path / COLD_TRAIN).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / COLD_DEV).write_text(lines[3] + "\n", encoding="utf-8")
    rows = [_jade(n, kind) for n in range(60) for kind in "us"]
    (tmp_path / JADE).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def test_the_jade_split_is_the_same_on_every_machine() -> None:
    held_out = [n for n in range(1, 40) if is_held_out(f"jade-medium-{n}-u")]
    assert held_out == [1, 4, 15, 22, 24, 30, 32, 33, 34, 36]


def test_both_answers_of_one_question_are_on_one_side() -> None:
    assert all(is_held_out(f"jade-medium-{n}-u") == is_held_out(f"jade-medium-{n}-s") for n in range(500))


def test_about_a_fifth_is_held_out() -> None:
    assert 0.15 < sum(is_held_out(f"x-{n}-u") for n in range(2_000)) / 2_000 < 0.25


def test_no_held_out_question_is_trained_on(folder: Path) -> None:
    corpus = load_corpus(folder, seed=1)
    trained = {row.item.question for row in corpus.train}
    assert corpus.jade_held_out
    assert trained.isdisjoint(record.item.question for record in corpus.jade_held_out)


def test_a_validation_text_is_not_trained_on(folder: Path) -> None:
    corpus = load_corpus(folder, seed=1)
    assert {row.item.response for row in corpus.train}.isdisjoint(record.item.response for record in corpus.cold_dev)


def test_a_held_out_text_is_not_trained_on(folder: Path) -> None:
    corpus = load_corpus(folder, seed=1)
    trained = {row.item.response for row in corpus.train}
    assert corpus.cold_held_out
    assert trained.isdisjoint(record.item.response for record in (*corpus.cold_held_out, *corpus.pairs_held_out))
    assert {row.item.question for row in corpus.train}.isdisjoint(
        record.item.question for record in corpus.pairs_held_out
    )


def test_spaces_and_case_make_no_other_text() -> None:
    texts = [f"Text {n}" for n in range(40)]
    assert [is_text_held_out(text) for text in texts] == [is_text_held_out(f" {text.upper()}\n") for text in texts]


def test_windows_overlap_and_cover_the_text() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(1_000))
    found = windows(text, size=300, overlap=60)
    assert found[0] + "".join(piece[60:] for piece in found[1:]) == text
    assert max(map(len, found)) == 300


def test_a_text_of_exactly_one_window_is_one_window() -> None:
    assert windows("字" * 300, size=300, overlap=60) == ["字" * 300]


def test_a_record_weighs_the_same_however_many_windows_it_has() -> None:
    windows_of_one = windowed(sample("字" * 900, Label.SAFE), weight=2.0)
    assert sum(window.weight for window in windows_of_one) == pytest.approx(2.0)


def test_the_analysis_names_the_category() -> None:
    assert "性别" in analysis_of(sample("字", Label.UNSAFE, "gender"))


def test_the_window_carries_its_records_label() -> None:
    assert {window.label for window in windowed(sample("字" * 900, Label.UNSAFE))} == {Label.UNSAFE}


def test_a_record_without_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"id": "a", "response": "字", "label": "安全"}\n{"id": "b", "response": "字"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"some\.jsonl, line 2: .*label"):
        read_samples([DataFile(path=path)])


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_file_that_holds_no_records_is_a_data_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"some\.json"):
        read_samples([DataFile(path=path)])


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_samples([DataFile(path=tmp_path / "none.json")])
