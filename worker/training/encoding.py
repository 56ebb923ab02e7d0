"""Training rows as token ids, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tokenizers import Tokenizer

from schemas.items import Label
from worker.training.data import Row
from worker.training.rendering import PREFILL, TURN, TURN_END, answer_text, user_turn
from worker.training.tokenizer import control_ids, encode_plain

BUCKET_BATCHES: Final = 32
IGNORED: Final = -100


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row. `ids` ends with the answer, which begins at `answer`; `label` is the verdict's place."""

    ids: list[int]
    answer: int
    label: int
    truth: Label
    weight: float


@dataclass(frozen=True)
class Batch:
    """Rows behind a shared prefix, padded on the right, with the hidden states to read and what they should say."""

    ids: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


class RowEncoder:
    """Encodes rows as the serving side renders them: whole turns, control ids put between them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        control = control_ids(tokenizer)
        self._turn, self._turn_end = control[TURN], control[TURN_END]
        self._between = [self._turn_end, *encode_plain(tokenizer, "\n"), self._turn]
        role = encode_plain(tokenizer, "assistant\n")
        self._role_length = len(role)
        self._label_place = len(encode_plain(tokenizer, f"assistant\n{PREFILL}"))
        self._answers: dict[tuple[Label, str], list[int]] = {}

    def encode(self, row: Row) -> Example:
        """The row's ids, and where its answer and its label stand."""
        user = encode_plain(self._tokenizer, f"user\n{user_turn(row.question, row.response)}")
        head = [self._turn, *user, *self._between]
        ids = [*head, *self._answer(row)]
        return Example(ids, len(head) + self._role_length, len(head) + self._label_place, row.label, row.weight)

    def _answer(self, row: Row) -> list[int]:
        key = (row.label, row.analysis)
        if key not in self._answers:
            text = f"assistant\n{answer_text(*key)}"
            self._answers[key] = [*encode_plain(self._tokenizer, text), self._turn_end]
        return self._answers[key]


def common_prefix(examples: Sequence[Example]) -> list[int]:
    """The ids every example begins with."""
    first = examples[0].ids
    length = min(example.answer for example in examples)
    for example in examples:
        while first[:length] != example.ids[:length]:
            length -= 1
    return first[:length]


def batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Every example once, in batches of near-equal lengths, in an order that `seed` decides."""
    rng = random.Random(seed)  # noqa: S311 - reproducible order, not a secret
    order = list(examples)
    rng.shuffle(order)
    bucket = size * BUCKET_BATCHES
    found = []
    for start in range(0, len(order), bucket):
        near = sorted(order[start : start + bucket], key=lambda example: len(example.ids))
        found += [near[place : place + size] for place in range(0, len(near), size)]
    rng.shuffle(found)
    yield from found


def collate(examples: Sequence[Example], prefix: int, pad: int, label_weight: float) -> Batch:
    """Tensors of a batch, without the first `prefix` ids of every row.

    The last id is no input and the answer's tokens alone are targets. A row's label weighs `label_weight`, and all
    its other answer tokens together weigh 1.
    """
    width = max(len(example.ids) for example in examples) - prefix - 1
    depth = max(len(example.ids) - example.answer for example in examples)
    ids = torch.full((len(examples), width), pad)
    mask = torch.zeros((len(examples), prefix + width), dtype=torch.long)
    places = torch.zeros((len(examples), depth), dtype=torch.long)
    targets = torch.full((len(examples), depth), IGNORED)
    weights = torch.zeros((len(examples), depth))
    for number, example in enumerate(examples):
        body = example.ids[prefix:-1]
        answer = example.ids[example.answer :]
        ids[number, : len(body)] = torch.tensor(body)
        mask[number, : prefix + len(body)] = 1
        places[number, : len(answer)] = torch.arange(len(answer)) + example.answer - 1 - prefix
        targets[number, : len(answer)] = torch.tensor(answer)
        weights[number, : len(answer)] = 1 / len(answer)
        weights[number, example.label - example.answer] = label_weight
        weights[number] *= example.weight
    return Batch(ids, mask, places, targets, weights)
