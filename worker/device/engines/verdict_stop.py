"""Ends a generation once its verdict is known. Knows ids, not what they mean: the guard names the sequences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria


class VerdictKnown(StoppingCriteria):
    """Tells Hugging Face's generate which rows have just reached their end.

    It only sees the newest ids of a row, so it must be asked at each step; `prompt_tokens` is the padded length of
    the prompts, in which nothing is looked for.
    """

    def __init__(self, verdict_ids: Sequence[Sequence[int]], *, prompt_tokens: int, device: torch.device) -> None:
        by_length: dict[int, list[list[int]]] = defaultdict(list)
        for sequence in verdict_ids:
            by_length[len(sequence)].append(list(sequence))
        self._tables = {length: torch.tensor(rows, device=device) for length, rows in by_length.items()}
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: Any) -> torch.Tensor:  # noqa: ANN401, ARG002
        """Tell for each row if it is at its end: ids of shape (n, tokens) in, (n,) bool out."""
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for length, table in self._tables.items():
            if input_ids.shape[1] - self._prompt_tokens >= length:
                newest = input_ids[:, None, -length:]
                ended |= (newest == table).all(dim=-1).any(dim=-1)
        return ended


def until_verdict(row: Sequence[int], verdict_ids: Sequence[Sequence[int]]) -> list[int]:
    """The row up to the end of the sequence of `verdict_ids` that ends first in it; whole if there is none."""
    ids = list(row)
    by_last: dict[int, list[list[int]]] = defaultdict(list)
    for sequence in verdict_ids:
        by_last[sequence[-1]].append(list(sequence))
    for end, last in enumerate(ids, 1):
        if any(ids[max(0, end - len(known)) : end] == known for known in by_last.get(last, ())):
            return ids[:end]
    return ids
