"""The limits of a chunk: items that travel together. Knows neither where the items come from nor where they go."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.items import Item


def in_chunks(items: Iterable[Item], *, max_items: int, max_bytes: int) -> list[list[Item]]:
    """Neighbours in the given order, at most so many items and text bytes together (a larger item goes alone)."""
    chunks: list[list[Item]] = []
    size = 0
    for item in items:
        if not chunks or len(chunks[-1]) >= max_items or size + item.text_bytes > max_bytes:
            chunks.append([])
            size = 0
        chunks[-1].append(item)
        size += item.text_bytes
    return chunks
