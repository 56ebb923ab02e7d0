"""A file beside a classifier says what its classes mean, and nothing that it says wrongly is guessed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from infra.errors import GuardError
from producer.gateway.api.openai_categories import openai_categories
from schemas.guards import Mode
from schemas.items import Item, Kind, Label
from schemas.messages import ChunkItem
from tests.support.checkpoints import small_tokenizer, write_checkpoint
from tests.support.families import write_classifier
from worker.guards.registry import load_guard
from worker.guards.sequence_classifier import SequenceClassifierGuard

FOUR = {"id2label": {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2", 3: "LABEL_3"}}


def mapped(folder: Path, said: Any, *, name: str = "guard.yaml", **config: Any) -> SequenceClassifierGuard:
    write_classifier(folder, **{**FOUR, **config})
    (folder / name).write_text(json.dumps(said) if name.endswith("json") else yaml.safe_dump(said))
    guard = load_guard("mine", str(folder))
    assert isinstance(guard, SequenceClassifierGuard)
    return guard


def row(*probabilities: float) -> list[list[float]]:
    return [[math.log(p) for p in probabilities]]


@pytest.mark.parametrize("name", ["guard.yaml", "guard.yml", "guard.json"])
def test_with_one_softmax_the_unsafe_classes_add_up_and_the_likeliest_is_named(tmp_path: Path, name: str) -> None:
    labels = {"LABEL_0": "safe", "LABEL_1": "unsafe", "2": "gambling", "LABEL_3": "my own word"}
    guard = mapped(tmp_path, {"labels": labels, "threshold": 0.4}, name=name)

    verdict = guard.read_scores(0, row(0.55, 0.1, 0.3, 0.05))
    assert (verdict.label, verdict.categories) == (Label.UNSAFE, ("LABEL_2:gambling",))
    assert verdict.p_unsafe == pytest.approx(0.45)
    assert openai_categories(verdict.categories) == {"illicit"}
    assert guard.read_scores(0, row(0.35, 0.3, 0.2, 0.15)).categories == ()
    assert guard.read_scores(0, row(0.35, 0.1, 0.15, 0.4)).categories == ("my own word",)
    assert guard.read_scores(0, row(0.61, 0.1, 0.19, 0.1)).label is Label.SAFE


def test_with_several_sigmoids_each_class_has_its_own_threshold(tmp_path: Path) -> None:
    labels = {
        "LABEL_0": "safe",
        "LABEL_1": {"category": "hate_abuse", "threshold": 0.3},
        "LABEL_2": "weapons",
        "LABEL_3": "weapons",
    }
    guard = mapped(tmp_path, {"labels": labels, "multi_label": True})

    assert guard.multi_label
    verdict = guard.read_scores(0, row(0.9, 0.4, 0.2, 0.2))
    assert (verdict.label, verdict.categories, verdict.p_unsafe) == (
        Label.UNSAFE,
        ("LABEL_1:hate_abuse",),
        pytest.approx(0.4),
    )
    assert guard.read_scores(0, row(0.1, 0.1, 0.8, 0.7)).categories == ("weapons",)
    assert guard.read_scores(0, row(0.1, 0.2, 0.4, 0.4)).label is Label.SAFE


def test_a_guard_judges_the_kinds_that_its_map_names(tmp_path: Path) -> None:
    labels = dict.fromkeys(("LABEL_1", "LABEL_2", "LABEL_3"), "unsafe") | {"LABEL_0": "safe"}
    guard = mapped(tmp_path, {"labels": labels, "kinds": ["prompt"]})

    assert set(guard.kinds) == {Kind.TEXT, Kind.PROMPT}
    assert guard.render([ChunkItem.of(0, Item(id="1", question="问"))], Mode.CLASSIFY)
    with pytest.raises(GuardError, match="mine cannot judge a question with its response"):
        guard.render([ChunkItem(seq=0, question="问", response="答")], Mode.CLASSIFY)


def test_another_map_is_another_guard(tmp_path: Path) -> None:
    labels = dict.fromkeys(("LABEL_1", "LABEL_2", "LABEL_3"), "unsafe") | {"LABEL_0": "safe"}
    maps = [{"labels": labels}, {"labels": labels, "threshold": 0.6}, {"labels": labels | {"LABEL_3": "other"}}]

    digests = {mapped(tmp_path / str(at), said).prompt_digest for at, said in enumerate(maps)}

    assert len(digests) == 3


GOOD = dict.fromkeys(("LABEL_1", "LABEL_2", "LABEL_3"), "unsafe") | {"LABEL_0": "safe"}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"labels": {"LABEL_0": "safe"}}, "nothing says what the class 'LABEL_1' means"),
        ({"labels": GOOD | {"LABEL_9": "unsafe"}}, "'LABEL_9' is no class of config.json"),
        ({"labels": dict.fromkeys(GOOD, "safe")}, "is known to mean unsafe"),
        ({"labels": dict.fromkeys(GOOD, "unsafe")}, "is known to mean safe"),
        ({"labels": GOOD, "threshold": 50}, "threshold: Input should be less than 1"),
        ({"labels": GOOD | {"LABEL_1": {"category": "a", "threshold": 0.2}}}, "only where multi_label is true"),
        ({"labels": GOOD | {"LABEL_1": "a,b"}}, r"labels.LABEL_1.category: String should match"),
        ({"labels": GOOD, "kinds": ["messages"]}, "conversations .messages. cannot be put to it"),
        ({"labels": GOOD, "multilabel": True}, "multilabel: Extra inputs"),
        (["LABEL_0"], "the file: Input should be an object"),
        (None, "the file: Input should be an object"),
    ],
)
def test_a_map_that_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, said: Any, reason: str) -> None:
    with pytest.raises(GuardError, match=reason):
        mapped(tmp_path, said)


def test_broken_files_and_several_of_them_are_refused(tmp_path: Path) -> None:
    write_classifier(tmp_path, **FOUR)
    (tmp_path / "guard.yaml").write_text("labels: [")
    with pytest.raises(GuardError, match="cannot be read as YAML or JSON"):
        load_guard("mine", str(tmp_path))
    (tmp_path / "guard.json").write_text("{}")
    with pytest.raises(GuardError, match=r"holds guard\.yaml and guard\.json; keep one"):
        load_guard("mine", str(tmp_path))


def test_a_map_beside_a_model_that_writes_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, small_tokenizer())
    (folder / "guard.yaml").write_text(yaml.safe_dump({"labels": GOOD}))

    with pytest.raises(GuardError, match="names no classifier"):
        load_guard("mine", str(folder))


def test_class_names_that_no_list_or_database_can_hold_are_cleaned(tmp_path: Path) -> None:
    write_classifier(tmp_path, id2label={0: "safe", 1: "sexual, minors\0" + "x" * 200})
    guard = load_guard("mine", str(tmp_path))

    (category,) = guard.read_scores(0, row(0.1, 0.9)).categories
    assert category.startswith("sexual  minors")
    assert len(category) == 100
