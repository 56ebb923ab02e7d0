"""The choice of the next batch among the waiting prompts. Pure: no I/O, no threads, no clock.

The rules, in order:

1. Live goes before bulk. So that constant live traffic cannot starve bulk for ever, one batch in
   `LIVE_STREAK` goes to bulk while both wait (it is cut to the time slice, so live loses little).
2. The oldest entry of the chosen lane is always in the batch: nothing starves within a lane.
3. It is filled with its nearest neighbours in length that share its key, while its size stays within the
   token budget: prompts x longest where the engine pads, their sum where it packs. An entry above the
   budget goes alone.
4. Equal prompts that wait at the same time are one entry: it runs once and answers all who ask. Once a
   live one is among them it is live.

Isolation needs no rule of its own: a prompt that must run alone has a key of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from schemas.messages import Lane

LIVE_STREAK: Final = 16
"""While both lanes wait, bulk gets one batch after this many live ones."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One waiting prompt. A lower ticket came earlier; only entries of equal key share a batch.

    `items` are those who wait for its answer. Entries that are equal in key and `ids` are the same prompt. `packs`: it
    runs without padding; `most_tokens`: its batch is no larger than this, whatever the budget. Both are alike for all
    entries of a key.
    """

    ticket: int
    lane: Lane
    tokens: int
    key: Hashable
    ids: Hashable
    items: list[T]
    packs: bool = False
    most_tokens: int | None = None


def size_tokens(batch: list[Entry[T]]) -> int:
    """Size of a batch as the device runs it: every prompt padded to the longest, or packed."""
    if all(entry.packs for entry in batch):
        return sum(entry.tokens for entry in batch)
    return len(batch) * max(entry.tokens for entry in batch)


class Waiting(Generic[T]):
    """Entries that wait, by arrival and by length. Its length is the number of items. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry[T]] = {}
        self._by_prompt: dict[tuple[Hashable, Hashable], Entry[T]] = {}
        # Tickets in order of arrival; those already taken are skipped when they reach the front.
        self._arrivals: dict[Lane, deque[int]] = {lane: deque() for lane in Lane}
        self._by_length: dict[tuple[Lane, Hashable], list[tuple[int, int]]] = {}
        self._live_streak = 0

    def __len__(self) -> int:
        return sum(len(entry.items) for entry in self._entries.values())

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry[T]) -> None:
        """Queue an entry, or add its items to a waiting entry of the same prompt. Tickets are unique and grow."""
        twin = self._by_prompt.get((entry.key, entry.ids))
        if twin is not None and (twin.lane is Lane.LIVE or entry.lane is Lane.BULK):
            twin.items += entry.items
            return
        if twin is not None:
            self._remove(twin)
            entry.items = twin.items + entry.items
        self._entries[entry.ticket] = entry
        self._by_prompt[entry.key, entry.ids] = entry
        self._arrivals[entry.lane].append(entry.ticket)
        insort(self._by_length.setdefault((entry.lane, entry.key), []), (entry.tokens, entry.ticket))

    def drop(self, condition: Callable[[T], bool]) -> int:
        """Forget every item that meets the condition, and the entries that nobody waits for; returns how many items."""
        dropped = 0
        for entry in list(self._entries.values()):
            kept = [item for item in entry.items if not condition(item)]
            dropped += len(entry.items) - len(kept)
            entry.items = kept
            if not kept:
                self._remove(entry)
        return dropped

    def waits(self, lane: Lane) -> bool:
        """True if anything of this lane waits."""
        return self._oldest(lane) is not None

    def take(self, *, max_tokens: int, max_items: int, bulk_cut_tokens: int | None = None) -> list[Entry[T]]:
        """Remove and return the next batch, sorted by length; empty if nothing waits.

        `max_tokens` bounds the batch's size; `bulk_cut_tokens` bounds a bulk batch further, for as
        long as live items wait or arrived lately.
        """
        live, bulk = self._oldest(Lane.LIVE), self._oldest(Lane.BULK)
        if live is None or (bulk is not None and self._live_streak >= LIVE_STREAK):
            self._live_streak, anchor = 0, bulk
        else:
            self._live_streak, anchor = self._live_streak + 1 if bulk is not None else 0, live
        if anchor is None:
            return []
        if anchor.lane is Lane.BULK and bulk_cut_tokens is not None:
            max_tokens = min(max_tokens, bulk_cut_tokens)
        if anchor.most_tokens is not None:
            max_tokens = min(max_tokens, anchor.most_tokens)
        start, stop = self._nearest(anchor, max_tokens, max_items)
        return self._cut(anchor.lane, anchor.key, start, stop)

    def _nearest(self, anchor: Entry[T], max_tokens: int, max_items: int) -> tuple[int, int]:
        """The slice of the anchor's queue, sorted by length, that fits, grown from the nearest in length."""
        queue, packs = self._by_length[anchor.lane, anchor.key], anchor.packs
        start = bisect_left(queue, (anchor.tokens, anchor.ticket))
        stop, total = start + 1, anchor.tokens
        # One entry more each time.
        for count in range(2, max_items + 1):
            shorter = queue[start - 1][0] if start > 0 else None
            longer = queue[stop][0] if stop < len(queue) else None
            if shorter is not None and (total + shorter if packs else count * queue[stop - 1][0]) > max_tokens:
                shorter = None
            if longer is not None and (total + longer if packs else count * longer) > max_tokens:
                longer = None
            if shorter is not None and (longer is None or anchor.tokens - shorter <= longer - anchor.tokens):
                start, total = start - 1, total + shorter
            elif longer is not None:
                stop, total = stop + 1, total + longer
            else:
                break
        return start, stop

    def _oldest(self, lane: Lane) -> Entry[T] | None:
        arrivals = self._arrivals[lane]
        while arrivals and arrivals[0] not in self._entries:
            arrivals.popleft()
        return self._entries[arrivals[0]] if arrivals else None

    def _remove(self, entry: Entry[T]) -> None:
        queue = self._by_length[entry.lane, entry.key]
        position = bisect_left(queue, (entry.tokens, entry.ticket))
        self._cut(entry.lane, entry.key, position, position + 1)

    def _cut(self, lane: Lane, key: Hashable, start: int, stop: int) -> list[Entry[T]]:
        queue = self._by_length[lane, key]
        taken = [self._entries.pop(ticket) for _, ticket in queue[start:stop]]
        for entry in taken:
            del self._by_prompt[entry.key, entry.ids]
        del queue[start:stop]
        if not queue:
            del self._by_length[lane, key]
        return taken
