"""One chunk through a judge: what is asked of the device, what is not, and what becomes of its answers."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from infra.coordination.leases import Delivery
from infra.errors import DeviceAwayError, DeviceError, DeviceProtocolError, GuardError
from schemas.guards import Mode
from schemas.items import Example, Label, Retention
from schemas.messages import ChunkItem, JudgeChunk, Lane, VerdictChunk
from schemas.verdicts import CategoriesBy, Fingerprint, Outcome, Spent, Verdict
from tests.support.store import Store
from worker.consumer.answers import AnswerCache
from worker.consumer.tasks import MOST_TRIES, ONE_BY_ONE_FROM_DELIVERY, ONE_BY_ONE_FROM_RETURN, Judge
from worker.device.protocol import DeviceRequest, DeviceResult, Generated, Kind, Scored
from worker.guards.base import PromptIds
from worker.guards.categories import CategoryQuestion
from worker.guards.fake import FakeGuard


class Picky(FakeGuard):
    """Cannot ask about a text that says so."""

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:  # noqa: ARG002
        for item in items:
            if "no" in item.response:
                raise GuardError(f"item {item.seq} does not fit")
        return [[array("i", [1])] for _ in items]


class Talkative(FakeGuard):
    """Says its verdict first; each part of a text between bars is a window."""

    verdict_ids = ((1, 2), (3,))

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:  # noqa: ARG002
        return [[_ids(part) for part in item.response.split("|")] for item in items]


def _ids(text: str) -> PromptIds:
    return array("i", list(text.encode()))


def chunk_of(*texts: str, **options: Any) -> JudgeChunk:
    return JudgeChunk(
        run_id="r",
        chunk_no=0,
        guard="fake",
        enqueued_at=time.time(),
        items=tuple(ChunkItem(seq=seq, question="", response=text) for seq, text in enumerate(texts)),
        **{"mode": Mode.SCORE, "lane": Lane.BULK, **options},
    )


FIRST = Delivery(1, settled=False, cancelled=False)


class Naming(Talkative):
    """Unsafe where its text says so; its categories are compared behind the scored prompt."""

    category_question = CategoryQuestion({1: array("i", [7])}, ((8,), (9,)), ("C8", "C9"), CategoriesBy.FORCED_CHOICE)  # type: ignore[assignment]

    def read_scores(self, seq: int, windows: Sequence[Sequence[float]], *, single: bool = False) -> Verdict:  # noqa: ARG002
        label = Label.UNSAFE if seq % 2 else Label.SAFE
        return Verdict(seq=seq, outcome=Outcome.SCORED, label=label, p_unsafe=0.5)

    def category_prompt(  # type: ignore[override]
        self,
        prompts: Sequence[PromptIds],
        windows: Sequence[Sequence[float]],  # noqa: ARG002
        *,
        single: bool = False,  # noqa: ARG002
    ) -> PromptIds | None:
        if prompts[0] == _ids("broken"):
            raise ZeroDivisionError
        return prompts[-1] + array("i", [7])


def judged(
    chunk: JudgeChunk,
    guard: FakeGuard,
    *,
    memory: Store | None = None,
    asked: list[DeviceRequest] | None = None,
    delivery: Delivery = FIRST,
    fails: Callable[[DeviceRequest], Exception | None] = lambda _: None,
    noted: list[tuple[Any, ...]] | None = None,
    **options: Any,
) -> VerdictChunk:
    published: list[VerdictChunk] = []

    def run(request: DeviceRequest, *, on_progress: Callable[[], None]) -> DeviceResult:
        assert request.prompts, "an empty request is no request"
        if asked is not None:
            asked.append(request)
        if (error := fails(request)) is not None:
            raise error
        if request.kind is Kind.GENERATE:
            return DeviceResult([Generated(tuple(b"text")) for _ in request.prompts], share_s=len(request.prompts))
        return DeviceResult([Scored((-0.1, -3.0)) for _ in request.prompts], share_s=len(request.prompts))

    notes = [] if noted is None else noted
    device: Any = SimpleNamespace(run=run)
    store: Any = memory
    deliveries: Any = SimpleNamespace(
        in_hand=lambda *_: nullcontext(delivery),
        note_progress=lambda _: None,
        note_return=lambda _: notes.append(("return",)),
        give_back=lambda _, deaths: notes.append(("give back", deaths)),
        begin_try=lambda _, seq, survived: notes.append(("try", seq, survived)),
        end_try=lambda _, seq: notes.append(("end", seq)),
        finish=lambda verdicts, _tag, fresh: (published.append(verdicts), memory is None or memory.put(fresh)),
    )
    fingerprint = Fingerprint(
        guard="fake", model="m", revision="r", prompt="p", mode=Mode.SCORE, dtype="none", engine="fake"
    )
    judge = Judge(
        guard=guard,
        device=device,
        deliveries=deliveries,
        fingerprints=dict.fromkeys(Mode, fingerprint),
        worker_id="w",
        cache=None if store is None else AnswerCache(store, Retention.FULL),
        device_name="a device",
        devices=2,
        **options,
    )
    judge(chunk.model_dump_json())
    return published[0]


@pytest.mark.parametrize("texts", [("yes", "no", "yes"), ("no",), ("yes",)])
def test_an_item_that_cannot_be_asked_costs_only_itself(texts: tuple[str, ...]) -> None:
    verdicts = judged(chunk_of(*texts), Picky()).verdicts

    for seq, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
        assert verdict.seq == seq
        assert verdict.outcome is (Outcome.DEAD if text == "no" else Outcome.SCORED)
        assert verdict.reason == (f"item {seq} does not fit" if text == "no" else None)


class Broken(FakeGuard):
    """Raises what no guard should, with the text in it."""

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:
        if any(item.response == "in render" for item in items):
            raise ValueError("in render")
        return super().render(items, mode)

    def read_scores(self, seq: int, windows: Sequence[Sequence[float]], *, single: bool = False) -> Verdict:
        if seq == 2:
            raise ZeroDivisionError("in read")
        return super().read_scores(seq, windows, single=single)


def test_whatever_a_guard_raises_ends_its_item_alone_with_its_name_and_no_text() -> None:
    verdicts = judged(chunk_of("fine", "in render", "in read", "fine"), Broken()).verdicts

    assert [verdict.outcome for verdict in verdicts] == [Outcome.SCORED, Outcome.DEAD, Outcome.DEAD, Outcome.SCORED]
    reasons = [verdict.reason for verdict in verdicts[1:3]]
    assert reasons == ["the guard fake failed: ValueError", "the guard fake failed: ZeroDivisionError"]


class Shown(FakeGuard):
    """Asks after its examples."""

    def __init__(self, examples: Sequence[Example] = ()) -> None:
        self._examples = examples

    @property
    def prompt_digest(self) -> str:  # type: ignore[override]
        return "".join(one.response for one in self._examples)

    def with_examples(self, examples: Sequence[Example]) -> Shown:
        return Shown(examples)

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:  # noqa: ARG002
        return [[_ids("".join([*(one.response for one in self._examples), item.response]))] for item in items]


def test_chunks_of_several_runs_are_each_asked_with_their_own_examples() -> None:
    one, two = (Example(question="", response=text, label=Label.SAFE) for text in "xy")
    chunks = [
        chunk_of("a", version=2, examples=(one, two)),
        chunk_of("a"),
        chunk_of("a", version=2, examples=(two,)),
    ]
    asked = list[DeviceRequest]()

    seen = [judged(chunk, Shown(), asked=asked).fingerprint for chunk in chunks]

    assert [request.prompts for request in asked] == [[_ids("xya")], [_ids("a")], [_ids("ya")]]
    assert [fingerprint and fingerprint.prompt for fingerprint in seen] == ["xy", "p", "y"]


def test_a_guard_without_a_form_for_examples_ends_the_items_with_that_reason() -> None:
    example = Example(question="", response="x", label=Label.SAFE)
    (verdict,) = judged(chunk_of("a", version=2, examples=(example,)), FakeGuard()).verdicts
    assert (verdict.outcome, verdict.reason) == (Outcome.DEAD, "fake has no form for worked examples")


def test_an_item_is_marked_as_cached_only_where_all_its_prompts_were_known() -> None:
    memory, asked = Store(), list[DeviceRequest]()
    first = judged(chunk_of("a", "b|c", cache=True), Talkative(), memory=memory, asked=asked)
    second = judged(chunk_of("b|c", "a|d", "a", cache=True), Talkative(), memory=memory, asked=asked)

    assert [verdict.cached for verdict in first.verdicts] == [False, False]
    assert [verdict.cached for verdict in second.verdicts] == [True, False, True]
    assert [request.prompts for request in asked] == [[_ids("a"), _ids("b"), _ids("c")], [_ids("d")]]
    one, other = first.verdicts[1], second.verdicts[0]
    assert one.model_copy(update={"seq": 0, "cached": True}) == other


def test_a_chunk_costs_what_its_device_did_for_it_and_nothing_for_what_was_known() -> None:
    memory = Store()
    first = judged(chunk_of("aa", "b|c", cache=True), Talkative(), memory=memory).spent
    second = judged(chunk_of("aa", "d", cache=True), Talkative(), memory=memory).spent
    known = judged(chunk_of("aa", cache=True), Talkative(), memory=memory).spent
    written = judged(chunk_of("aa", "b", mode=Mode.GENERATE), Talkative()).spent

    assert first == Spent(device="a device", device_s=2 * 3.0, prompt_tokens=4)
    assert second == Spent(device="a device", device_s=2 * 1.0, prompt_tokens=1)
    assert known == Spent(device="a device")
    assert written == Spent(device="a device", device_s=2 * 2.0, prompt_tokens=3, new_tokens=8)


def test_a_chunk_that_does_not_allow_it_neither_reads_the_cache_nor_fills_it() -> None:
    memory, asked = Store(), list[DeviceRequest]()
    judged(chunk_of("a"), Talkative(), memory=memory, asked=asked)
    assert not memory.values

    judged(chunk_of("a", cache=True), Talkative(), memory=memory, asked=asked)
    plain = judged(chunk_of("a"), Talkative(), memory=memory, asked=asked)

    assert len(asked) == 3
    assert not plain.verdicts[0].cached


@pytest.mark.parametrize(("verdict_only", "sequences"), [(True, ((1, 2), (3,))), (False, ())])
def test_a_model_ends_with_its_verdict_only_where_the_chunk_says_so(
    verdict_only: bool, sequences: tuple[tuple[int, ...], ...]
) -> None:
    asked: list[DeviceRequest] = []
    chunk = chunk_of("a", mode=Mode.GENERATE, verdict_only=verdict_only, iteration=2)

    judged(chunk, Talkative(), asked=asked)

    assert (asked[0].verdict_ids, asked[0].iteration) == (sequences, 2)


def fourth(**known: Any) -> Delivery:
    return Delivery(ONE_BY_ONE_FROM_DELIVERY, settled=False, cancelled=False, **known)


@pytest.mark.parametrize(
    "delivery", [fourth(), Delivery(1, settled=False, cancelled=False, returns=ONE_BY_ONE_FROM_RETURN)]
)
def test_a_chunk_that_saw_workers_die_is_judged_item_by_item_and_each_is_noted_before(delivery: Delivery) -> None:
    asked: list[DeviceRequest] = []
    noted: list[tuple[Any, ...]] = []

    answer = judged(chunk_of("a", "b", "c"), FakeGuard(), asked=asked, delivery=delivery, noted=noted)

    assert [len(request.prompts) for request in asked] == [1, 1, 1]
    assert noted == [("try", 0, None), ("try", 1, 0), ("try", 2, 1)]
    assert [verdict.seq for verdict in answer.verdicts] == [0, 1, 2]
    assert {verdict.outcome for verdict in answer.verdicts} == {Outcome.SCORED}


def test_an_item_in_whose_judging_enough_workers_ended_dies_without_being_asked() -> None:
    asked: list[DeviceRequest] = []

    answer = judged(chunk_of("a", "b", "c"), FakeGuard(), asked=asked, delivery=fourth(tries={1: MOST_TRIES, 2: 1}))

    assert len(asked) == 2
    assert [verdict.outcome for verdict in answer.verdicts] == [Outcome.SCORED, Outcome.DEAD, Outcome.SCORED]
    assert answer.verdicts[1].reason == "the worker ended 3 times while it judged this item"


def test_an_item_that_fails_alone_dies_of_its_own_error_and_its_neighbours_are_judged() -> None:
    (bad,) = FakeGuard().render([ChunkItem(seq=0, question="", response="b")], Mode.SCORE)[0]

    def fails(request: DeviceRequest) -> Exception | None:
        return DeviceError("it sent no answer") if request.prompts == [bad] else None

    answer = judged(chunk_of("a", "b", "c"), FakeGuard(), delivery=fourth(), fails=fails)

    assert [verdict.outcome for verdict in answer.verdicts] == [Outcome.SCORED, Outcome.DEAD, Outcome.SCORED]
    assert answer.verdicts[1].reason == "the item could not be judged: DeviceError: it sent no answer"


@pytest.mark.parametrize(
    ("error", "then"),
    [
        (DeviceAwayError("no device", {}), [("try", 0, None), ("end", 0), ("give back", {})]),
        (DeviceProtocolError("another protocol"), [("try", 0, None), ("end", 0)]),
    ],
)
def test_a_device_that_is_away_or_speaks_another_protocol_is_no_items_doing(
    error: DeviceError, then: list[tuple[Any, ...]]
) -> None:
    noted: list[tuple[Any, ...]] = []

    with pytest.raises(type(error)):
        judged(chunk_of("a", "b"), FakeGuard(), delivery=fourth(), fails=lambda _: error, noted=noted)

    assert noted == then


def test_a_chunk_that_fails_is_returned_and_counted_so_that_this_has_an_end() -> None:
    noted: list[tuple[Any, ...]] = []

    with pytest.raises(DeviceError):
        judged(chunk_of("a"), FakeGuard(), fails=lambda _: DeviceError("a frame too large"), noted=noted)

    assert noted == [("return",)]


def test_only_unsafe_items_are_asked_for_their_category_and_it_changes_nothing_else() -> None:
    asked = list[DeviceRequest]()
    chunk = chunk_of("a", "b", "c", "d|e")

    verdicts = judged(chunk, Naming(), asked=asked, category_lanes=(Lane.BULK,)).verdicts

    first, second = asked
    assert (first.labels, second.labels) == (Naming.label_ids, ((8,), (9,)))
    assert second.prompts == [_ids("b") + array("i", [7]), _ids("e") + array("i", [7])]
    assert [verdict.categories for verdict in verdicts] == [(), ("C8",), (), ("C8",)]
    assert [verdict.categories_by for verdict in verdicts] == [None, CategoriesBy.FORCED_CHOICE] * 2
    plain = judged(chunk, Naming()).verdicts
    assert plain == tuple(verdict.model_copy(update={"categories": (), "categories_by": None}) for verdict in verdicts)


def test_a_category_that_nobody_gives_costs_no_verdict() -> None:
    asked = list[DeviceRequest]()

    verdicts = judged(chunk_of("a", "broken"), Naming(), asked=asked, category_lanes=(Lane.BULK,)).verdicts

    assert len(asked) == 1
    assert [verdict.label for verdict in verdicts] == [Label.SAFE, Label.UNSAFE]
    assert not verdicts[1].categories


def test_the_second_pass_is_asked_in_its_lanes_and_in_mode_score_alone_and_its_cost_is_counted() -> None:
    lanes = (Lane.LIVE,)
    asked = list[DeviceRequest]()

    judged(chunk_of("a", "b"), Naming(), asked=asked, category_lanes=lanes)
    judged(chunk_of("a", "b", mode=Mode.GENERATE, lane=Lane.LIVE), Naming(), asked=asked, category_lanes=lanes)
    assert len(asked) == 2
    spent = judged(chunk_of("a", "b", lane=Lane.LIVE), Naming(), asked=asked, category_lanes=lanes).spent
    assert len(asked) == 4
    assert spent == Spent(device="a device", device_s=2 * (2.0 + 1.0), prompt_tokens=2 + 2)
