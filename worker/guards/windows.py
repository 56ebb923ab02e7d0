"""Overlapping pieces of a content that is too long for one prompt. Every character lies in at least one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Final

from infra.errors import GuardError
from schemas.messages import ChunkItem
from worker.guards.base import PromptIds

MIN_ROOM: Final = 64
"""Tokens of content that a prompt must have room for; below, windows would judge scraps of sentences."""
_OVERLAP: Final = 8
"""An eighth of a piece is repeated in the next: some sentences, so that none is judged only in halves."""


def pair_windows(
    question: str, response: str, room: int, token_starts: Callable[[str], list[int]]
) -> list[tuple[str, str]]:
    """Question and response pieces that together take about `room` tokens.

    A text that takes at most half of the room is repeated whole with each piece of the other. Where both
    are longer they advance side by side, and the last piece of the one that ends first is repeated.
    """
    half = max(1, room // 2)
    of_question, of_response = token_starts(question), token_starts(response)
    questions = pieces(question, of_question, max(half, room - len(of_response)))
    responses = pieces(response, of_response, max(half, room - len(of_question)))
    last = (questions[-1], responses[-1])
    return [
        (q if q is not None else last[0], r if r is not None else last[1]) for q, r in zip_longest(questions, responses)
    ]


def pieces(text: str, starts: list[int], budget: int) -> list[str]:
    """Overlapping pieces of at most `budget` tokens each; `starts` are the tokens' first characters."""
    step = budget - budget // _OVERLAP
    count = len(starts)
    found = []
    for first in range(0, max(1, count), step):
        end = first + budget
        begin = starts[first] if first else 0
        found.append(text[begin : starts[end] if end < count else len(text)])
        if end >= count:
            break
    return found


def fitting_windows(
    item: ChunkItem,
    encode: Callable[[list[tuple[str, str]]], list[PromptIds]],
    *,
    limit: int,
    room: int,
    token_starts: Callable[[str], list[int]],
    name: str,
) -> list[PromptIds]:
    """The prompts of an item's windows, none longer than `limit`; `room` is what the limit leaves for content.

    Raises:
        GuardError: a piece of its text does not fit.
    """
    while room > 0:
        prompts = encode(pair_windows(item.question, item.response, room, token_starts))
        excess = max(map(len, prompts)) - limit
        if excess <= 0:
            return prompts
        # A piece on its own can take more tokens than it took inside its text.
        room -= max(excess, room // 64)
    raise GuardError(f"item {item.seq} has a piece of text that does not fit the context of {name}")
