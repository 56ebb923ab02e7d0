"""Rows labelled by two judges, and hard examples with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from infra.ledger.items import Candidate, Ending
from libra_fleet.cli.commands import CURATE
from producer.curation.files import rows_of
from producer.curation.labels import Reason, agreed, hard_examples, reasons_of
from schemas.items import Label, LibraRecord
from schemas.verdicts import Outcome

PROVENANCE = {
    **{"origin": "o", "licence": "l", "generator": "g", "stage": "responses"},
    **{"parent_id": None, "seed": 1},
}
ROW = {
    **{"id": "1", "source": "s", "category_name": "违法犯罪", "sub_category_name": "赌博", "question": "问"},
    **{"response": "答", "label": "", "analyze": "", "provenance": PROVENANCE, "intent": "harmful", "aims": ["a", "b"]},
}
LABELS = st.sampled_from([Label.SAFE, Label.UNSAFE, None])


def settled(label: Label | None) -> Ending:
    return Ending(Outcome.SCORED if label else Outcome.UNPARSEABLE, label, None, None)


def judged(**facts: object) -> Candidate:
    known = {
        **{"item_id": "a", "seq": 7, "question": "", "response": "文", "source": "forum", "category": ""},
        **{"subcategory": "", "truth": None, "label": Label.SAFE, "p_unsafe": 0.01, "human": None, "disputed": False},
    }
    return Candidate(**{**known, **facts})  # type: ignore[arg-type]


@given(first=LABELS, second=LABELS)
def test_only_a_label_that_both_judges_gave_is_kept(first: Label | None, second: Label | None) -> None:
    verdicts = {"a": {"1": settled(first)}, "b": {"1": settled(second)}}
    ((place, row),) = agreed([ROW], verdicts, "annotated", "dropped")
    if first is not None and first is second:
        assert place == "annotated"
        assert LibraRecord.model_validate(row).to_item().truth is first
        assert set(row) == set(ROW) - {"intent", "aims"}
        assert set(row["provenance"]) == set(PROVENANCE)
        assert "赌博" in row["analyze"] or first is Label.SAFE
    else:
        assert place == "dropped"
        assert {judge: said["label"] for judge, said in row["verdicts"].items()} == {"a": first, "b": second}


def test_a_row_that_one_judge_never_saw_is_dropped() -> None:
    ((place, row),) = agreed([ROW], {"a": {"1": settled(Label.SAFE)}, "b": {}}, "annotated", "dropped")
    assert place == "dropped"
    assert row["verdicts"]["b"] == {"outcome": None, "label": None}


@pytest.mark.parametrize(
    ("item", "reasons"),
    [
        (judged(), []),
        (judged(p_unsafe=0.4), [Reason.SMALL_MARGIN]),
        (judged(p_unsafe=None, label=None), []),
        (judged(disputed=True), [Reason.GUARDS_DISAGREE]),
        (judged(human=Label.UNSAFE), [Reason.HUMAN_OVERRULED]),
        (judged(human=Label.SAFE), []),
        (judged(truth=Label.UNSAFE, p_unsafe=0.45), [Reason.SMALL_MARGIN, Reason.LABEL_MISSED]),
    ],
)
def test_an_item_is_a_hard_example_for_its_own_reasons(item: Candidate, reasons: list[Reason]) -> None:
    assert reasons_of(item, 0.15) == reasons


def test_a_hard_examples_label_is_the_humans_then_the_known_one_else_none() -> None:
    items = [
        judged(truth=Label.SAFE, human=Label.UNSAFE),
        judged(truth=Label.UNSAFE, source="COLD/train"),
        judged(disputed=True),
    ]
    rows = list(hard_examples(items, run_name="r", guard="g", margin=0.1, origin=None, licence=None))
    assert [row["label"] for row in rows] == ["不安全", "不安全", ""]
    assert [row["provenance"]["origin"] for row in rows] == ["ledger:r", "thu-coai/COLDataset", "ledger:r"]
    assert [row["provenance"]["licence"] for row in rows] == ["own data", "Apache-2.0", "own data"]


def test_a_public_set_is_read_with_its_origin_and_licence(tmp_path: Path) -> None:
    records = [
        {"id": "j-1", "source": "jade-db-v3.0/medium", "question": "问", "response": "答", "label": "不安全"},
        {"id": "x-1", "source": "mine", "response": "文", "label": "安全", "category_name": "region"},
        {"id": "x-2", "source": "mine", "response": "没有标签"},
        {"id": "x-1", "source": "mine", "response": "另一段", "label": "不安全"},
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    result = CliRunner().invoke(CURATE, ["real", str(tmp_path / "d"), str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    found = [(row["id"], row["label"], row["provenance"]["licence"]) for row in rows_of(tmp_path / "d", "real")]
    assert found == [("j-1", "不安全", "MIT"), ("x-1", "安全", "unknown"), ("x-1@set-4", "不安全", "unknown")]
