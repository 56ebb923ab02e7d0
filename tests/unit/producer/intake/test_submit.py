"""Cutting a stream into windows and chunks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from producer.intake.submit import _windows, cut_chunks
from schemas.items import Item

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=60)
item_lists = st.lists(texts.filter(str.strip), max_size=80).map(
    lambda found: [Item(id=str(number), response=text) for number, text in enumerate(found)]
)


@given(items=item_lists, max_items=st.integers(1, 10), max_bytes=st.integers(1, 300))
def test_chunks_hold_every_item_once_and_keep_both_limits(items: list[Item], max_items: int, max_bytes: int) -> None:
    chunks = cut_chunks(items, max_items=max_items, max_bytes=max_bytes)

    assert Counter(item.id for chunk in chunks for item in chunk) == Counter(item.id for item in items)
    assert all(0 < len(chunk) <= max_items for chunk in chunks)
    assert all(len(chunk) == 1 or sum(item.text_bytes for item in chunk) <= max_bytes for chunk in chunks)


@given(items=item_lists)
def test_neighbours_in_a_chunk_are_neighbours_in_length(items: list[Item]) -> None:
    lengths = [item.text_bytes for chunk in cut_chunks(items, max_items=5, max_bytes=200) for item in chunk]

    assert lengths == sorted(lengths)


@given(items=item_lists, max_items=st.integers(1, 10), max_bytes=st.integers(1, 300))
def test_windows_keep_the_order_of_the_stream_and_are_bounded(
    items: list[Item], max_items: int, max_bytes: int
) -> None:
    windows = list(_windows(iter(items), max_items=max_items, max_bytes=max_bytes))

    assert [item for window in windows for item in window] == items
    assert all(0 < len(window) <= max_items for window in windows)
    assert all(sum(item.text_bytes for item in window[:-1]) < max_bytes for window in windows)
