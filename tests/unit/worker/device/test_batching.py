"""The planner's promises, over arbitrary waiting lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Lane
from worker.device.batching import LIVE_STREAK, Entry, Waiting, size_tokens

Prompt = tuple[Lane, int, str, int]
"""Lane, tokens, key, and which of the prompts of this length it is."""

PROMPT = st.tuples(st.sampled_from(list(Lane)), st.integers(1, 600), st.sampled_from(["a", "b", "c"]), st.just(0))
ENTRIES = st.lists(PROMPT, max_size=80)
TWINS = st.lists(
    st.tuples(st.sampled_from(list(Lane)), st.integers(1, 3), st.sampled_from(["a", "b"]), st.integers(0, 2)),
    max_size=60,
)
"""Prompts of which many are equal."""


def entry_of(ticket: int, prompt: Prompt, *, packs: bool = False) -> Entry[int]:
    lane, tokens, key, which = prompt
    return Entry(ticket, lane, tokens, key, (tokens, which), [ticket], packs)


def waiting_of(prompts: list[Prompt], *, packs: bool = False) -> Waiting[int]:
    waiting: Waiting[int] = Waiting()
    for ticket, prompt in enumerate(prompts):
        waiting.add(entry_of(ticket, prompt, packs=packs))
    return waiting


def alone(lane: Lane, tokens: int, ticket: int) -> Entry[int]:
    """An entry that has no twin."""
    return Entry(ticket, lane, tokens, "a", ticket, [ticket])


@given(ENTRIES | TWINS, st.integers(1, 2_000), st.integers(1, 16), st.none() | st.integers(1, 500), st.booleans())
def test_every_item_comes_out_once_within_budget_and_with_its_own_kind(
    prompts: list[Prompt], max_tokens: int, max_items: int, cut: int | None, packs: bool
) -> None:
    waiting = waiting_of(prompts, packs=packs)
    seen: Counter[int] = Counter()
    while batch := waiting.take(max_tokens=max_tokens, max_items=max_items, bulk_cut_tokens=cut):
        limit = max_tokens if cut is None or batch[0].lane is Lane.LIVE else min(max_tokens, cut)
        assert len(batch) == 1 or size_tokens(batch) <= limit
        assert len(batch) <= max_items
        assert len({(entry.lane, entry.key) for entry in batch}) == 1
        assert [entry.tokens for entry in batch] == sorted(entry.tokens for entry in batch)
        seen.update(item for entry in batch for item in entry.items)
        assert len(waiting) == len(prompts) - seen.total()
    assert seen == Counter(range(len(prompts)))
    assert not waiting


@given(ENTRIES | TWINS, st.integers(1, 2_000), st.integers(1, 16))
def test_the_oldest_of_the_lane_is_in_the_batch_and_live_goes_first(
    prompts: list[Prompt], max_tokens: int, max_items: int
) -> None:
    waiting = waiting_of(prompts)
    left = lanes_and_tickets(prompts)
    streak = 0
    while batch := waiting.take(max_tokens=max_tokens, max_items=max_items):
        lane = batch[0].lane
        lanes = {lane for lane, _ in left.values()}
        if lane is Lane.BULK and Lane.LIVE in lanes:
            assert streak == LIVE_STREAK
        streak = streak + 1 if lanes == set(Lane) and lane is Lane.LIVE else 0
        assert min(ticket for its, ticket in left.values() if its is lane) in {entry.ticket for entry in batch}
        for entry in batch:
            del left[entry.key, entry.ids]


def lanes_and_tickets(prompts: list[Prompt]) -> dict[tuple[object, object], tuple[Lane, int]]:
    """Of each distinct prompt: live if one of its twins is, and the ticket of the first one of that lane."""
    found: dict[tuple[object, object], tuple[Lane, int]] = {}
    for ticket, prompt in enumerate(prompts):
        lane, tokens, key, which = prompt
        known = found.get((key, (tokens, which)))
        if known is None or (known[0] is Lane.BULK and lane is Lane.LIVE):
            found[key, (tokens, which)] = (lane, ticket)
    return found


@given(TWINS, st.integers(1, 50), st.integers(1, 8))
def test_equal_prompts_that_wait_together_run_once(prompts: list[Prompt], max_tokens: int, max_items: int) -> None:
    waiting = waiting_of(prompts)
    ran: Counter[object] = Counter()
    while batch := waiting.take(max_tokens=max_tokens, max_items=max_items):
        for entry in batch:
            ran[entry.key, entry.ids] += 1
            assert {prompts[item][1:] for item in entry.items} == {(entry.tokens, entry.key, entry.ids[1])}
            assert (entry.lane is Lane.LIVE) == any(prompts[item][0] is Lane.LIVE for item in entry.items)
    assert ran == Counter({(key, (tokens, which)): 1 for _, tokens, key, which in prompts})


@given(TWINS, st.integers(0, 59))
def test_what_has_been_taken_waits_no_more_so_a_late_twin_runs_anew(prompts: list[Prompt], early: int) -> None:
    waiting = waiting_of(prompts[:early])
    first = [entry for batch in iter(take_all(waiting), []) for entry in batch]
    for ticket, prompt in enumerate(prompts[early:], early):
        waiting.add(entry_of(ticket, prompt))
    second = [entry for batch in iter(take_all(waiting), []) for entry in batch]
    items = [item for entry in first + second for item in entry.items]
    assert sorted(items) == list(range(len(prompts)))
    assert all(item < early for entry in first for item in entry.items)


def take_all(waiting: Waiting[int]) -> Callable[[], list[Entry[int]]]:
    return lambda: waiting.take(max_tokens=1_000, max_items=8)


@given(ENTRIES | TWINS, st.sets(st.integers(0, 79)))
def test_dropped_items_never_come_out_and_their_twins_do(prompts: list[Prompt], gone: set[int]) -> None:
    waiting = waiting_of(prompts)
    assert waiting.drop(lambda item: item in gone) == len(gone & set(range(len(prompts))))
    seen: Counter[int] = Counter()
    while batch := waiting.take(max_tokens=1_000, max_items=8):
        assert all(entry.items for entry in batch), "nobody waits for it"
        seen.update(item for entry in batch for item in entry.items)
    assert seen == Counter(set(range(len(prompts))) - gone)


def test_a_live_twin_takes_a_waiting_bulk_prompt_along() -> None:
    waiting = waiting_of([(Lane.BULK, 10, "a", 0), (Lane.BULK, 10, "a", 1), (Lane.LIVE, 10, "a", 1)])
    batch = waiting.take(max_tokens=10, max_items=1)
    assert [(entry.lane, entry.items) for entry in batch] == [(Lane.LIVE, [1, 2])]
    assert not waiting.waits(Lane.LIVE)
    assert [entry.items for entry in waiting.take(max_tokens=10, max_items=1)] == [[0]]


def test_a_batch_is_filled_with_the_nearest_lengths() -> None:
    waiting = waiting_of([(Lane.BULK, tokens, "a", 0) for tokens in (100, 10, 500, 98, 105, 90, 400)])
    batch = waiting.take(max_tokens=420, max_items=8)
    assert [entry.tokens for entry in batch] == [90, 98, 100, 105]


def test_constant_live_traffic_does_not_starve_bulk() -> None:
    waiting: Waiting[int] = Waiting()
    waiting.add(alone(Lane.BULK, 10, 0))
    for ticket in range(1, 100):
        waiting.add(alone(Lane.LIVE, 10, ticket))
        if waiting.take(max_tokens=10, max_items=1)[0].lane is Lane.BULK:
            break
    assert ticket == LIVE_STREAK + 1


def test_nothing_waits_in_an_empty_list() -> None:
    waiting: Waiting[int] = Waiting()
    assert waiting.take(max_tokens=1, max_items=1) == []
    assert not waiting.waits(Lane.LIVE)


def test_where_prompts_are_packed_their_sum_counts_and_not_the_longest() -> None:
    def sizes(*, packs: bool) -> list[int]:
        waiting = waiting_of([(Lane.BULK, tokens, "a", tokens) for tokens in (10, 11, 90)], packs=packs)
        return [len(batch) for batch in iter(lambda: waiting.take(max_tokens=120, max_items=9), [])]

    assert sizes(packs=True) == [3]
    assert sizes(packs=False) == [2, 1]


def test_a_kind_that_needs_more_memory_a_token_has_a_limit_of_its_own() -> None:
    waiting: Waiting[int] = Waiting()
    for ticket in range(8):
        waiting.add(Entry(ticket, Lane.BULK, 100, "generate", ticket, [ticket], most_tokens=250))
    waiting.add(Entry(8, Lane.BULK, 100, "score", 8, [8], packs=True))

    batches = [waiting.take(max_tokens=1_000, max_items=64) for _ in range(5)]

    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
