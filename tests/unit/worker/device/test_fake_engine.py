"""The fake engine's protocol (crash and hang are tested with a real process)."""

from __future__ import annotations

import json
import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.device.engines.base import OutOfMemory
from worker.device.engines.fake import DIRECTIVES, FakeEngine

LABELS = ((1,), (2,))
TEXT_IDS = st.lists(st.integers(0, 255), min_size=1, max_size=200)


@given(TEXT_IDS)
def test_text_is_unsafe_iff_its_ids_sum_to_a_multiple_of_three(ids: list[int]) -> None:
    [(safe, unsafe)] = FakeEngine().score([array("i", ids)], LABELS)
    assert (unsafe > safe) == (sum(ids) % 3 == 0)


@pytest.mark.parametrize(("directive", "answer"), [("safe", "安全"), ("unsafe", "不安全"), ("unparseable", None)])
def test_directives_decide(directive: str, answer: str | None) -> None:
    prompt = array("i", [DIRECTIVES[directive], 1])
    [(safe, unsafe)] = FakeEngine().score([prompt], LABELS)
    [ids] = FakeEngine().generate([prompt], max_new_tokens=256, stop_ids=())
    text = bytes(ids).decode()
    if answer is None:
        assert safe == unsafe < -4
        assert "{" not in text
    else:
        assert (unsafe > safe) == (answer == "不安全")
        assert json.loads(text) == {"答案": answer}


def test_the_oom_directive_needs_company() -> None:
    prompt = array("i", [DIRECTIVES["oom"]])
    with pytest.raises(OutOfMemory):
        FakeEngine().score([prompt, array("i", [1])], LABELS)
    [(safe, unsafe)] = FakeEngine().score([prompt], LABELS)
    assert safe > unsafe


def test_generation_is_cut() -> None:
    assert FakeEngine().generate([array("i", [256])], max_new_tokens=2, stop_ids=()) == [tuple(b'{"')]


def test_with_an_error_it_is_wrong_that_often_and_knows_how_sure_it_is() -> None:
    prompts = [array("i", [DIRECTIVES["unsafe"], *str(at).encode()]) for at in range(4_000)]
    unsafe = [math.exp(scores[1]) for scores in FakeEngine(error=0.1).score(prompts, LABELS)]

    wrong = [p_unsafe < 0.5 for p_unsafe in unsafe]
    doubts = [min(p_unsafe, 1 - p_unsafe) for p_unsafe in unsafe]
    assert sum(wrong) / len(wrong) == pytest.approx(0.1, abs=0.02)
    assert sum(doubts) / len(doubts) == pytest.approx(0.1, abs=0.01)
    sure = [is_wrong for is_wrong, doubt in zip(wrong, doubts, strict=True) if doubt < 0.05]
    assert len(sure) / len(wrong) > 0.5
    assert sum(sure) / len(sure) < 0.03
    assert unsafe == [math.exp(scores[1]) for scores in FakeEngine(error=0.1).score(prompts, LABELS)]
