"""A checkpoint's temperature: read from its folder, part of the guard's digest, felt in p_unsafe and in no label."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import GuardError
from schemas.items import Label
from schemas.verdicts import Verdict
from tests.support.checkpoints import small_tokenizer, write_checkpoint
from worker.guards.libra import LibraGuard
from worker.guards.reading import Choice, from_logprobs
from worker.guards.sequence_classifier import SequenceClassifierGuard

CHOICES = (Choice("safe", Label.SAFE), Choice("unsafe", Label.UNSAFE))
probabilities = st.floats(0.001, 0.999)
temperatures = st.floats(0.05, 20)


def logprobs(p_unsafe: float) -> list[float]:
    return [math.log(1 - p_unsafe), math.log(p_unsafe)]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def calibrated(folder: Path, content: object) -> Path:
    write_checkpoint(folder, small_tokenizer())
    (folder / "libra.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LibraGuard:
    return LibraGuard(write_checkpoint(tmp_path_factory.mktemp("plain"), small_tokenizer()), name="g", model="g")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> LibraGuard:
    return LibraGuard(calibrated(tmp_path_factory.mktemp("warm"), {"temperature": 2.0}), name="g", model="g")


def softened(before: Verdict, after: Verdict, temperature: float) -> bool:
    assert before.p_unsafe is not None
    assert after.p_unsafe is not None
    same = after.label is before.label and after.label_mass == before.label_mass
    return same and logit(after.p_unsafe) == pytest.approx(logit(before.p_unsafe) / temperature, abs=1e-6)


@given(probabilities)
def test_the_logit_is_divided_and_the_label_stays(plain: LibraGuard, warm: LibraGuard, p_unsafe: float) -> None:
    rows = [logprobs(p_unsafe)]
    assert softened(plain.read_scores(0, rows), warm.read_scores(0, rows), 2.0)


@given(probabilities, temperatures)
def test_guards_of_other_formats_do_the_same(p_unsafe: float, temperature: float) -> None:
    before = from_logprobs(0, CHOICES, logprobs(p_unsafe))
    after = from_logprobs(0, CHOICES, logprobs(p_unsafe), temperature=temperature)
    if 0.001 < (after.p_unsafe or 0) < 0.999:
        assert softened(before, after, temperature)
    assert after.label is before.label


@pytest.mark.parametrize("classes", [{"0": "safe", "1": "unsafe"}, {"0": "unsafe"}], ids=["softmax", "sigmoid"])
def test_a_classifiers_probability_is_softened(tmp_path: Path, classes: dict[str, str]) -> None:
    write_checkpoint(tmp_path, small_tokenizer())
    config = {"max_position_embeddings": 512, "id2label": classes, "model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    row = logprobs(0.9)[-len(classes) :]
    before = SequenceClassifierGuard(tmp_path, name="c", model="c").read_scores(0, [row])
    (tmp_path / "libra.json").write_text('{"temperature": 4}', encoding="utf-8")
    after = SequenceClassifierGuard(tmp_path, name="c", model="c").read_scores(0, [row])
    assert softened(before, after, 4.0)


def test_what_says_too_little_stays_unparseable(warm: LibraGuard) -> None:
    assert warm.read_scores(0, [[math.log(0.1), math.log(0.2)]]).label is None


def test_the_temperature_is_part_of_the_digest_and_one_of_1_changes_nothing(
    plain: LibraGuard, warm: LibraGuard, tmp_path: Path
) -> None:
    same = LibraGuard(calibrated(tmp_path, {"temperature": 1, "rows": 9}), name="g", model="g")
    assert warm.prompt_digest != plain.prompt_digest == same.prompt_digest


@pytest.mark.parametrize("temperature", [0, -1, "2", None, True, 1e999])
def test_what_is_no_temperature_is_refused(tmp_path: Path, temperature: object) -> None:
    with pytest.raises(GuardError, match=r"libra\.json: temperature is a number above 0"):
        LibraGuard(calibrated(tmp_path, {"temperature": temperature}), name="g", model="g")
