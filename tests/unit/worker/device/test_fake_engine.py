"""The fake engine's protocol (crash and hang are tested with a real process)."""

from __future__ import annotations

import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.device.engines.base import OutOfMemory
from worker.device.engines.fake import FakeEngine
from worker.guards.fake_protocol import DIRECTIVES

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
