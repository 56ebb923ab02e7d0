"""Worked examples drawn from a file: how many of which label, the same everywhere, none that is judged."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DataError
from producer.datasets.reference_format import MAX_EXAMPLES_BYTES, draw_examples
from schemas.items import Label


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(unsafe: int, safe: int) -> list[dict[str, Any]]:
    labels = ["不安全"] * unsafe + ["安全"] * safe
    return [
        {"id": at, "question": "问", "response": f"第 {at} 条", "label": label, "analyze": f"因为 {at}"}
        for at, label in enumerate(labels)
    ]


@pytest.fixture
def judged(tmp_path: Path) -> str:
    return write(tmp_path / "judged.jsonl", [{"id": "j", "response": "待判断"}])


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        ((9, 9), 4, {2}),
        ((9, 1), 4, {3, 1}),
        ((0, 9), 4, {4}),
        ((9, 9), 3, {2, 1}),
        ((2, 2), 4, {2}),
        ((9, 9), 1, {1}),
    ],
)
def test_labels_are_balanced_as_far_as_the_file_has_them(
    tmp_path: Path, judged: str, rows: tuple[int, int], count: int, expected: set[int]
) -> None:
    path = write(tmp_path / "examples.jsonl", labelled(*rows))
    for seed in range(8):
        drawn = draw_examples(path, count, seed=seed, judged=judged)
        assert len(drawn) == count
        assert set(Counter(one.label for one in drawn).values()) == expected


def test_the_seed_alone_decides_which_and_in_what_order(tmp_path: Path, judged: str) -> None:
    path = write(tmp_path / "examples.jsonl", labelled(20, 20))
    first, again, other = (draw_examples(path, 6, seed=seed, judged=judged) for seed in (42, 42, 43))

    assert first == again != other
    assert all(one.analysis == f"因为 {one.response.split()[1]}" for one in first)


def test_rows_without_a_label_and_rows_that_are_judged_are_never_drawn(tmp_path: Path, judged: str) -> None:
    rows = labelled(1, 2)
    own = write(tmp_path / "own.jsonl", [*rows[:2], {"id": "x", "response": "无"}, {"id": "bad"}])
    write(Path(judged), [{"id": "elsewhere", "question": "问", "response": "第 0 条"}])

    (drawn,) = draw_examples(own, 1, seed=1, judged=judged)
    assert (drawn.response, drawn.label) == ("第 1 条", Label.SAFE)
    with pytest.raises(DataError, match="2 examples are wanted, but of its 2 labelled rows 1 are not among"):
        draw_examples(own, 2, seed=1, judged=judged)
    with pytest.raises(DataError, match="of its 2 labelled rows 0 are not"):
        draw_examples(own, 1, seed=1, judged=own)


def test_examples_that_would_burden_every_chunk_are_refused(tmp_path: Path, judged: str) -> None:
    row = {"id": 1, "response": "x" * (MAX_EXAMPLES_BYTES + 1), "label": "安全"}
    with pytest.raises(DataError, match="limit is"):
        draw_examples(write(tmp_path / "examples.jsonl", [row]), 1, seed=1, judged=judged)
