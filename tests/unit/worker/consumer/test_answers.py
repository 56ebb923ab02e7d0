"""What is remembered of a device's answers, and what never is."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.items import Retention
from schemas.messages import Lane
from tests.support.make import FINGERPRINT
from tests.support.store import Store
from worker.consumer.answers import AnswerCache, keys_of, pack, unpack
from worker.device.protocol import Answer, Dead, DeviceRequest, DeviceResult, Generated, Kind, Scored

SCORE = DeviceRequest(Kind.SCORE, Lane.BULK, [array("i", [1, 2]), array("i", [3])], labels=((5,), (6, 7)))
GENERATE = DeviceRequest(Kind.GENERATE, Lane.BULK, SCORE.prompts, max_new_tokens=8, stop_ids=(2,))
CLASSIFY = DeviceRequest(Kind.CLASSIFY, Lane.BULK, SCORE.prompts)


class Device:
    """Answers with the sum of the ids and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def run(self, request: DeviceRequest, *, on_progress: Callable[[], None]) -> DeviceResult:  # noqa: ARG002
        self.asked += [list(prompt) for prompt in request.prompts]
        return DeviceResult([self._answer(request.kind, prompt) for prompt in request.prompts])

    def _answer(self, kind: Kind, prompt: array[int]) -> Answer:
        if prompt[0] == 13:
            return Dead("it kills", 2)
        if kind is Kind.GENERATE:
            return Generated(tuple(prompt))
        return Scored((-0.1 * sum(prompt), math.nan if prompt[0] == 99 else -1.0))


def ask(store: Store, request: DeviceRequest, *, retention: Retention = Retention.FULL) -> tuple[Any, list[list[int]]]:
    device = Device()
    cache = AnswerCache(store, retention)  # type: ignore[arg-type]
    answered = cache.run(device, request, FINGERPRINT)  # type: ignore[arg-type]
    store.put(answered.fresh)
    return answered, device.asked


@pytest.mark.parametrize("request_", [SCORE, GENERATE, CLASSIFY], ids=lambda request: request.kind)
def test_the_same_prompts_are_asked_once_and_answered_alike(request_: DeviceRequest) -> None:
    store = Store()
    first, asked = ask(store, request_)
    second, asked_again = ask(store, request_)

    assert asked == [[1, 2], [3]]
    assert asked_again == []
    assert (first.known, second.known) == ([False, False], [True, True])
    assert second.answers == first.answers


def test_only_what_is_not_known_is_asked() -> None:
    store = Store()
    ask(store, SCORE)

    answered, asked = ask(store, replace(SCORE, prompts=[array("i", [4]), *SCORE.prompts]))

    assert asked == [[4]]
    assert answered.known == [False, True, True]
    assert [answer.logprobs[0] for answer in answered.answers] == pytest.approx([-0.4, -0.3, -0.3])


def test_deaths_and_what_is_no_number_are_asked_anew() -> None:
    store = Store()
    request = replace(SCORE, prompts=[array("i", [13]), array("i", [99]), array("i", [3])])
    ask(store, request)

    answered, asked = ask(store, request)

    assert asked == [[13], [99]]
    assert answered.known == [False, False, True]


@pytest.mark.parametrize(
    ("retention", "kind", "kept"),
    [
        (Retention.FULL, Kind.SCORE, True),
        (Retention.FULL, Kind.GENERATE, True),
        (Retention.HASH, Kind.SCORE, True),
        (Retention.HASH, Kind.GENERATE, False),
        (Retention.NONE, Kind.SCORE, False),
        (Retention.NONE, Kind.GENERATE, False),
    ],
)
def test_no_text_is_kept_where_none_may_stay_and_no_hash_where_nothing_may(
    retention: Retention, kind: Kind, kept: bool
) -> None:
    store = Store()
    request = SCORE if kind is Kind.SCORE else GENERATE
    ask(store, request, retention=retention)
    assert bool(store.values) is kept

    ask(store, request)  # another worker, which may keep everything
    assert ask(store, request, retention=retention)[0].known == [kept, kept]


@pytest.mark.parametrize(
    "other",
    [
        replace(SCORE, kind=Kind.CLASSIFY),
        replace(SCORE, labels=((5,), (7, 6))),
        replace(SCORE, stop_ids=(1,)),
        replace(SCORE, max_new_tokens=9),
        replace(SCORE, verdict_ids=((1, 2),)),
        replace(SCORE, prompts=[array("i", [2, 1]), array("i", [3, 3])]),
    ],
)
def test_whatever_decides_the_answer_is_in_the_key(other: DeviceRequest) -> None:
    assert not set(keys_of(FINGERPRINT, SCORE)) & set(keys_of(FINGERPRINT, other))


def test_another_guard_has_other_keys_and_another_lane_has_not() -> None:
    other = FINGERPRINT.model_copy(update={"dtype": "bfloat16"})
    assert not set(keys_of(FINGERPRINT, SCORE)) & set(keys_of(other, SCORE))
    assert keys_of(FINGERPRINT, SCORE) == keys_of(FINGERPRINT, replace(SCORE, lane=Lane.LIVE, isolate=True))


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.tuples(FINITE, FINITE))
def test_scores_come_back_bit_by_bit(row: tuple[float, float]) -> None:
    assert unpack(pack(Scored(row)), SCORE) == Scored(row)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=8))
def test_ids_come_back(ids: list[int]) -> None:
    assert unpack(pack(Generated(tuple(ids))), GENERATE) == Generated(tuple(ids))


@given(st.binary(max_size=80), st.sampled_from([SCORE, GENERATE, CLASSIFY]))
def test_whatever_lies_in_redis_is_an_answer_of_the_right_form_or_none(value: bytes, request_: DeviceRequest) -> None:
    answer = unpack(value, request_)

    if isinstance(answer, Scored):
        assert all(map(math.isfinite, answer.logprobs))
        assert len(answer.logprobs) == len(request_.labels) or request_.kind is Kind.CLASSIFY
    elif answer is not None:
        assert isinstance(answer, Generated)
        assert len(answer.ids) <= request_.max_new_tokens
