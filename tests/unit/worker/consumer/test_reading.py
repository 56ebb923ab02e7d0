"""What ends or stalls the process that reads an item is that item's doing, and costs no other."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import GuardError
from infra.process import wait_until
from schemas.guards import Mode, TextForm
from schemas.items import Kind, Turn
from schemas.messages import ChunkItem
from worker.consumer.reading import GuardClock, Reader, read_items
from worker.guards.base import PromptIds
from worker.guards.fake import FakeGuard


def item(seq: int, text: str) -> ChunkItem:
    return ChunkItem(seq=seq, question="", response=text)


def test_an_item_that_kills_the_reading_process_is_refused_with_the_signal_and_the_others_are_read() -> None:
    items = [item(0, "before"), item(1, "[[fake:kill-consumer]]"), item(2, "[[fake:raise-in-render]]"), item(3, "后")]
    progress: list[None] = []

    windows, refused = Reader("fake", None, weights=True, prompt_digest=FakeGuard.prompt_digest).read(
        items, Mode.SCORE, (), on_progress=lambda: progress.append(None)
    )

    reason = "the guard fake failed: the process that read the item was killed by SIGKILL, 2 times"
    assert refused == {1: reason, 2: "the guard fake failed: ValueError"}
    assert [windows[0], windows[3]] == [read_items(FakeGuard(), [items[at]], Mode.SCORE).windows[0] for at in (0, 3)]
    assert [windows[1], windows[2]] == [[], []]
    assert len(progress) == 4


def test_an_item_of_any_kind_is_read_in_a_process_of_its_own() -> None:
    turns = (Turn(role="user", content="一"), Turn(role="assistant", content="二"))
    items = [
        ChunkItem(seq=0, question="问", response="", kind=Kind.PROMPT),
        ChunkItem(seq=1, question="", response="答", kind=Kind.RESPONSE),
        ChunkItem(seq=2, question="问", response="答", history=turns, kind=Kind.MESSAGES),
    ]

    read = Reader("fake", None, weights=True, prompt_digest=FakeGuard.prompt_digest).read(
        items, Mode.SCORE, (), on_progress=lambda: None
    )

    assert read == read_items(FakeGuard(), items, Mode.SCORE)


def test_an_item_larger_than_a_pipe_is_read() -> None:
    windows, refused = Reader("fake", None, weights=True, prompt_digest=FakeGuard.prompt_digest).read(
        [item(0, "大" * 300_000)], Mode.SCORE, (), on_progress=lambda: None
    )
    assert refused == {}
    assert sum(map(len, windows[0])) > 800_000


def test_a_guard_that_takes_too_long_makes_its_process_unwell() -> None:
    clock = GuardClock(deadline_s=0.05)
    assert clock.is_well()
    with clock.running():
        assert wait_until(lambda: not clock.is_well(), timeout_s=5)
    assert clock.is_well()


DISGUISED = "他是傻\u200b逼"
PLAIN = "他是傻逼"


def chunk_items(*texts: str) -> list[ChunkItem]:
    return [ChunkItem(seq=seq, question="", response=text) for seq, text in enumerate(texts)]


def test_a_guard_is_asked_about_a_texts_normal_form_or_about_both_where_they_differ() -> None:
    guard = FakeGuard()
    disguised, plain = (guard.render(chunk_items(text), Mode.SCORE)[0] for text in (DISGUISED, PLAIN))
    items = chunk_items(DISGUISED, PLAIN)

    def asked(form: TextForm) -> list[list[PromptIds]]:
        return read_items(guard, items, Mode.SCORE, form).windows

    assert asked(TextForm.AS_IS) == [disguised, plain]
    assert asked(TextForm.NORMAL) == [plain, plain]
    assert asked(TextForm.WORSE) == [[*disguised, *plain], plain]


def test_every_text_of_an_item_is_taken_in_its_normal_form() -> None:
    turns = (Turn(role="user", content=DISGUISED), Turn(role="assistant", content="好"))
    item = ChunkItem(seq=0, question=DISGUISED, response=DISGUISED, history=turns)
    seen: list[ChunkItem] = []

    class Noting(FakeGuard):
        def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:
            seen.extend(items)
            return super().render(items, mode)

    read_items(Noting(), [item], Mode.SCORE, TextForm.NORMAL)

    (asked,) = seen
    assert (asked.question, asked.response, asked.history[0].content) == (PLAIN, PLAIN, PLAIN)


def test_a_text_of_which_nothing_is_seen_is_asked_about_as_it_is() -> None:
    items = chunk_items("\u200b\u200b")

    assert read_items(FakeGuard(), items, Mode.SCORE, TextForm.WORSE) == read_items(FakeGuard(), items, Mode.SCORE)


def test_an_item_of_which_one_form_cannot_be_asked_is_refused_and_its_neighbours_are_not() -> None:
    class Picky(FakeGuard):
        def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:
            if any(item.response == PLAIN for item in items):
                raise GuardError("does not fit")
            return super().render(items, mode)

    windows, refused = read_items(Picky(), chunk_items(DISGUISED, "好"), Mode.SCORE, TextForm.WORSE)

    assert [len(own) for own in windows] == [0, 1]
    assert refused == {0: "does not fit"}


def test_the_reading_process_takes_the_same_form() -> None:
    items = chunk_items(DISGUISED)
    reader = Reader("fake", None, weights=False, prompt_digest=FakeGuard().prompt_digest)

    read = reader.read(items, Mode.SCORE, (), form=TextForm.WORSE, on_progress=lambda: None)

    assert read == read_items(FakeGuard(), items, Mode.SCORE, TextForm.WORSE)
