"""Fits the table of hashed n-gram weights that is added to the language model in libra-tiny.

A logistic regression on the presence of n-grams, each scaled by how differently the labels use it (the log-count ratio
of Wang & Manning 2012), and the two or three numbers that put it together with the language model's margin. Knows ids
and labels; nothing of the model's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from schemas.items import Label
from worker.device.ngram_lm import LONGEST, NgramQwen2Config, fields, first_occurrences, ngram_slots
from worker.training.examples import Example
from worker.training.recipe import Strict

_BATCH: Final = 256


@dataclass(frozen=True)
class Presence:
    """The slots set in each text: those of all texts one after another, (slots,), and each text's start, (texts,)."""

    slots: torch.Tensor
    starts: torch.Tensor

    def sums(self, weights: torch.Tensor) -> torch.Tensor:
        """The sum of the weights of each text's slots: (texts,)."""
        return functional.embedding_bag(self.slots, weights[:, None], self.starts, mode="sum")[:, 0]


def presence(prompts: Sequence[Sequence[int]], config: NgramQwen2Config, *, own: bool = False) -> Presence:
    """The slots of whole prompts, whose text the config's ids mark. `own`: without those that replies share."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        width = len(prompts[chosen[-1]])
        ids = torch.tensor([[*prompts[at], *[0] * (width - len(prompts[at]))] for at in chosen])
        field = fields(ids, (width,), config, inside=False)
        slots = ngram_slots(ids, field, config.ngram_slots)
        if own:
            slots[..., :LONGEST].masked_fill_((slots[..., LONGEST:] > 0).any(dim=-1, keepdim=True), 0)
        slots = first_occurrences(slots, field.prompt)
        for at, row in zip(chosen, slots.flatten(1), strict=True):
            found[at] = row[row > 0]
    lengths = torch.tensor([0, *map(len, found)])
    return Presence(torch.cat(found), lengths.cumsum(0)[:-1])


class TableSettings(Strict):
    """Settings of the table's fit. `strength` is the weight of the loss against that of small weights."""

    slots: int = 1 << 22
    strength: float = 0.2
    least_texts: int = 2
    smoothing: float = 1.0
    steps: int = 100


def fit_table(examples: Sequence[Example], config: NgramQwen2Config, settings: TableSettings) -> torch.Tensor:
    """The weights of all slots, (slots,): in favour of unsafe above 0. Slots that few texts set stay 0.

    What comments say is learnt from comments alone. Dialogues then learn what their questions and replies say beyond
    that: fitted at once, the few long dialogues cost the comments half a point of accuracy (docs/libra-tiny.md).
    """
    # In a comment nothing stands between the piece that opens the text and the one that opens the answer.
    replied = [example.ids.index(config.answer_id) > example.ids.index(config.text_id) + 1 for example in examples]
    comments = [example for example, yes in zip(examples, replied, strict=True) if not yes]
    dialogues = [example for example, yes in zip(examples, replied, strict=True) if yes]
    table = torch.zeros(settings.slots)
    constant: float | None = None
    for part in (comments, dialogues):
        if part:
            added, constant = _fit(part, config, settings, table, constant)
            table = table + added
    return table


def _fit(
    examples: Sequence[Example],
    config: NgramQwen2Config,
    settings: TableSettings,
    known: torch.Tensor,
    constant: float | None,
) -> tuple[torch.Tensor, float]:
    """The weights these examples' own slots add to a known table, (slots,), and the constant, fitted if None."""
    prompts = [example.prompt for example in examples]
    offset = presence(prompts, config).sums(known)
    unsafe = torch.tensor([float(example.truth is Label.UNSAFE) for example in examples])
    weight = torch.tensor([example.weight for example in examples])
    used, found = in_use(presence(prompts, config, own=True), settings)
    ratio = _log_count_ratio(found, len(used), unsafe, weight, settings.smoothing)

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        always = parameters[0] if constant is None else constant
        margin = found.sums(parameters[1:] * ratio) + always + offset
        each = functional.binary_cross_entropy_with_logits(margin, unsafe, weight=weight, reduction="sum")
        return settings.strength * each + parameters[1:].square().sum() / 2

    least = minimum(loss, torch.zeros(1 + len(used)), settings.steps)
    table = torch.zeros(settings.slots)
    table[used] = least[1:] * ratio
    return table, least[0].item() if constant is None else constant


def in_use(found: Presence, settings: TableSettings) -> tuple[torch.Tensor, Presence]:
    """The slots that enough texts set, (used,), and each text's slots among them, by their place in that list."""
    texts = torch.zeros(settings.slots, dtype=torch.int32).index_add_(
        0, found.slots, torch.ones(len(found.slots), dtype=torch.int32)
    )
    enough = texts >= settings.least_texts
    kept = enough[found.slots]
    lengths = torch.cat([torch.zeros(1, dtype=torch.long), kept.cumsum(0)])
    place = enough.cumsum(0) - 1
    return enough.nonzero()[:, 0], Presence(place[found.slots[kept]], lengths[found.starts])


def fit_shares(margins: torch.Tensor, sums: torch.Tensor, unsafe: torch.Tensor) -> tuple[float, float, float]:
    """The factors of margins and of sums, each (texts,), and a constant: by logistic regression."""
    features = torch.stack([margins, sums, torch.ones_like(sums)], dim=1).double()
    scale = features.abs().mean(dim=0).clamp_min(1e-9)

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(features / scale @ parameters, unsafe.double())

    lm, ngram, bias = (minimum(loss, torch.zeros(3, dtype=torch.float64), 100) / scale).tolist()
    return lm, ngram, bias


def minimum(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, steps: int) -> torch.Tensor:
    """The point where a smooth convex function of one tensor is least, by L-BFGS."""
    at = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([at], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(at)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return at.detach()


def _log_count_ratio(
    found: Presence, slots: int, unsafe: torch.Tensor, weight: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """The log-ratio of how often unsafe texts set a slot to how often safe ones do: (slots,)."""
    lengths = torch.diff(found.starts, append=torch.tensor([len(found.slots)]))

    def count(share: torch.Tensor) -> torch.Tensor:
        each = share.repeat_interleave(lengths)
        return torch.zeros(slots).index_add_(0, found.slots, each) + smoothing

    bad, good = count(weight * unsafe), count(weight * (1 - unsafe))
    return (bad / bad.sum()).log() - (good / good.sum()).log()
