"""Rows from files: the same from every format, with where they came from, and never repeated in an error."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from infra.errors import DataError, UsageError
from schemas.items import Label
from tests.support.training import dialogues, write_rows
from worker.training.recipe import DataFile
from worker.training.samples import Count, counts_of, read_samples, split, without

ROWS = dialogues(8, seed=1)


def test_all_formats_hold_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    write_rows(tmp_path / "a.jsonl", ROWS)
    found = [read_samples([DataFile(path=tmp_path / f"a.{kind}")]) for kind in ("jsonl", "json", "parquet")]
    assert found[0] == found[1] == found[2]
    assert [sample.label for sample in found[0]] == [Label.SAFE, Label.UNSAFE] * 4
    assert (found[0][0].analysis, found[0][1].analysis) == ("请问", "world")


def test_rows_count_by_their_own_source_and_licence_or_else_by_their_files(tmp_path: Path) -> None:
    bare = [{key: row[key] for key in ("id", "response", "label")} for row in ROWS]
    own = DataFile(path=write_rows(tmp_path / "own.jsonl", ROWS), licence="MIT")
    public = DataFile(path=write_rows(tmp_path / "public.jsonl", bare), licence="Apache-2.0", source="a set")
    assert counts_of(read_samples([own, public])) == [
        Count("a set", "Apache-2.0", 4, 4),
        Count("made up", "CC0-1.0", 4, 4),
    ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**ROWS[0], "label": "maybe"}, "line 2: label"),
        ({**ROWS[0], "label": ""}, "line 2: a training row needs a label"),
        ({**ROWS[0], "response": " "}, "line 2"),
        ({"id": 1, "label": "安全"}, "line 2: response"),
    ],
)
def test_a_bad_row_is_named_without_its_text(tmp_path: Path, row: dict[str, object], told: str) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [ROWS[0], row])
    with pytest.raises(DataError) as caught:
        read_samples([DataFile(path=path)])
    assert told in str(caught.value)
    assert "蛋糕" not in str(caught.value)


def test_a_file_of_another_kind_or_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"jsonl, \.json or \.parquet"):
        read_samples([DataFile(path=tmp_path / "a.csv")])
    with pytest.raises(DataError, match=r"none\.jsonl"):
        read_samples([DataFile(path=tmp_path / "none.jsonl")])


def test_a_split_keeps_the_answers_to_one_question_together(tmp_path: Path) -> None:
    rows = [{**row, "question": f"问{number // 2}"} for number, row in enumerate(dialogues(200, seed=2))]
    samples = read_samples([DataFile(path=write_rows(tmp_path / "a.jsonl", rows))])
    kept, held = split(samples, 0.3, seed=1)
    assert {sample.group for sample in kept}.isdisjoint(sample.group for sample in held)
    assert len(kept) + len(held) == 200
    assert 20 < len(held) < 100
    assert split(samples, 0.3, seed=1) == (kept, held)
    assert split(samples, 0.3, seed=2) != (kept, held)


def test_rows_are_left_out_by_what_is_judged_and_not_by_their_id(tmp_path: Path) -> None:
    again = {**ROWS[0], "id": "another"}
    samples = read_samples([DataFile(path=write_rows(tmp_path / "a.jsonl", [*ROWS, again]))])
    assert len(without(samples, {samples[0].item.content_hash})) == 7
