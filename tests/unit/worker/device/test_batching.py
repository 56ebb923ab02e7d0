"""The planner's promises, over arbitrary waiting lists."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Lane
from worker.device.batching import LIVE_STREAK, Entry, Waiting, padded_tokens

ENTRY = st.tuples(st.sampled_from(list(Lane)), st.integers(1, 600), st.sampled_from(["a", "b", "c"]))
ENTRIES = st.lists(ENTRY, max_size=80)


def waiting_of(entries: list[tuple[Lane, int, str]]) -> Waiting[int]:
    waiting: Waiting[int] = Waiting()
    for ticket, (lane, tokens, key) in enumerate(entries):
        waiting.add(Entry(ticket, lane, tokens, key, ticket))
    return waiting


@given(ENTRIES, st.integers(1, 2_000), st.integers(1, 16), st.none() | st.integers(1, 500))
def test_every_entry_comes_out_once_within_budget_and_with_its_own_kind(
    entries: list[tuple[Lane, int, str]], max_tokens: int, max_items: int, cut: int | None
) -> None:
    waiting = waiting_of(entries)
    seen: Counter[int] = Counter()
    while batch := waiting.take(max_tokens=max_tokens, max_items=max_items, bulk_cut_tokens=cut):
        limit = max_tokens if cut is None or batch[0].lane is Lane.LIVE else min(max_tokens, cut)
        assert len(batch) == 1 or padded_tokens(batch) <= limit
        assert len(batch) <= max_items
        assert len({(entry.lane, entry.key) for entry in batch}) == 1
        assert [entry.tokens for entry in batch] == sorted(entry.tokens for entry in batch)
        seen.update(entry.ticket for entry in batch)
    assert seen == Counter(range(len(entries)))
    assert len(waiting) == 0


@given(ENTRIES, st.integers(1, 2_000), st.integers(1, 16))
def test_the_oldest_of_the_lane_is_in_the_batch_and_live_goes_first(
    entries: list[tuple[Lane, int, str]], max_tokens: int, max_items: int
) -> None:
    waiting = waiting_of(entries)
    left = dict(enumerate(entries))
    streak = 0
    while batch := waiting.take(max_tokens=max_tokens, max_items=max_items):
        lane = batch[0].lane
        lanes = {entry[0] for entry in left.values()}
        if lane is Lane.BULK and Lane.LIVE in lanes:
            assert streak == LIVE_STREAK
        streak = streak + 1 if lanes == set(Lane) and lane is Lane.LIVE else 0
        assert min(ticket for ticket, entry in left.items() if entry[0] is lane) in {entry.ticket for entry in batch}
        for entry in batch:
            del left[entry.ticket]


@given(ENTRIES, st.sets(st.integers(0, 79)))
def test_dropped_entries_never_come_out(entries: list[tuple[Lane, int, str]], gone: set[int]) -> None:
    waiting = waiting_of(entries)
    assert waiting.drop(lambda item: item in gone) == len(gone & set(range(len(entries))))
    seen = set()
    while batch := waiting.take(max_tokens=1_000, max_items=8):
        seen |= {entry.item for entry in batch}
    assert seen == set(range(len(entries))) - gone


def test_a_batch_is_filled_with_the_nearest_lengths() -> None:
    waiting = waiting_of([(Lane.BULK, tokens, "a") for tokens in (100, 10, 500, 98, 105, 90, 400)])
    batch = waiting.take(max_tokens=420, max_items=8)
    assert [entry.tokens for entry in batch] == [90, 98, 100, 105]


def test_constant_live_traffic_does_not_starve_bulk() -> None:
    waiting = waiting_of([(Lane.BULK, 10, "a")])
    for ticket in range(1, 100):
        waiting.add(Entry(ticket, Lane.LIVE, 10, "a", ticket))
        if waiting.take(max_tokens=10, max_items=1)[0].lane is Lane.BULK:
            break
    assert ticket == LIVE_STREAK + 1


def test_nothing_waits_in_an_empty_list() -> None:
    waiting: Waiting[int] = Waiting()
    assert waiting.take(max_tokens=1, max_items=1) == []
    assert not waiting.waits(Lane.LIVE)
