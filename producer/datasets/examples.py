"""Worked examples for a guard's prompt: drawn from a file by a seed, none of them among what is judged."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from infra.errors import DataError
from producer.datasets.raw import RawRecord, raw_records
from producer.datasets.records import RowError
from schemas.items import Example, Label

MAX_EXAMPLES_BYTES: Final = 256 * 1024
"""All examples together, in UTF-8 bytes: they travel with every chunk."""
_ANALYSES: Final = ("analyze", "analysis", "分析")


def draw_examples(path: str, count: int, *, seed: int, judged: str) -> tuple[Example, ...]:
    """So many labelled rows of a data set, the same for the same seed, half of each label as far as there are.

    A row that is also in the data set `judged` would give its own answer away: it is not drawn.

    Raises:
        DataError: a file cannot be read, has too few such rows, or those drawn are too long.
    """
    candidates = dict(_labelled(path))
    found = len(candidates)
    for content_hash, _ in _hashed(judged):
        candidates.pop(content_hash, None)
    if len(candidates) < count:
        raise DataError(
            f"{path}: {count:,} examples are wanted, but of its {found:,} labelled rows "
            f"{len(candidates):,} are not among the rows to be judged"
        )
    drawn = _balanced(list(candidates.values()), count, Random(seed))  # noqa: S311 - a sample, no secret
    size = sum(len(f"{one.question}{one.response}{one.analysis}".encode()) for one in drawn)
    if size > MAX_EXAMPLES_BYTES:
        raise DataError(
            f"{path}: the {count:,} examples drawn take {size:,} bytes; the limit is {MAX_EXAMPLES_BYTES:,}"
        )
    return tuple(drawn)


def _balanced(candidates: list[Example], count: int, rng: Random) -> list[Example]:
    """A half of each label, or all there are of one and the rest of the other; in random order."""
    rng.shuffle(candidates)
    first, second = rng.sample([Label.SAFE, Label.UNSAFE], 2)  # which of them has one more where the count is odd
    groups = {label: [one for one in candidates if one.label is label] for label in Label}
    of_second = min(len(groups[second]), max(count // 2, count - len(groups[first])))
    drawn = groups[first][: count - of_second] + groups[second][:of_second]
    rng.shuffle(drawn)
    return drawn


def _labelled(path: str) -> Iterator[tuple[bytes, Example]]:
    for content_hash, record in _hashed(path):
        item = record.item()
        if item.truth is not None:
            analysis = next((text for key in _ANALYSES if isinstance(text := record.row.get(key), str)), "")
            yield (
                content_hash,
                Example(question=item.question, response=item.response, label=item.truth, analysis=analysis),
            )


def _hashed(path: str) -> Iterator[tuple[bytes, RawRecord]]:
    """The rows that are items, each with the hash of what is judged."""
    for record in raw_records(path):
        if not isinstance(record, RawRecord):
            continue
        try:
            yield record.item().content_hash, record
        except RowError:
            continue
