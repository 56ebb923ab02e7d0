"""What ends or stalls the process that reads an item is that item's doing, and costs no other."""

from __future__ import annotations

from infra.process import wait_until
from schemas.guards import Mode
from schemas.messages import ChunkItem
from worker.consumer.reading import GuardClock, Reader, read_items
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
