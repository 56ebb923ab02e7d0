"""Tiny checkpoints that answer the plain texts of `libra guards check` as they are told to, right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from infra.guard_catalogue import GUARDS
from schemas.guards import Mode
from tests.support.families import write_family
from worker.checkup.texts import KINDS, PlainText, plain_texts
from worker.guards.registry import load_guard

Said = Callable[[PlainText], Mapping[str, float]]
"""What a guard answers to a text: whole answers and how likely each is."""

NAME = "xiangxin-guardrails-text"
"""A guard whose prompt is the text and whose answer a word, so that little has to be learnt."""
_STEPS = 300
_LOSS = 0.02


def by_label(text: PlainText) -> Mapping[str, float]:
    return {str(text.label): 1.0}


def write_taught(folder: Path, said: Said = by_label) -> Path:
    """A folder of this guard, trained until it answers so, and no further than that."""
    from transformers import AutoModelForCausalLM

    write_family(folder, GUARDS[NAME])
    guard = load_guard(NAME, str(folder))
    end = guard.stop_ids[0]
    words = guard._words  # type: ignore[attr-defined] - the tokenizer that the guard itself encodes with
    rows, weights, lengths = [], [], []
    for kind in (kind for kind in KINDS if kind in guard.kinds):
        for at, text in enumerate(plain_texts()):
            (prompt,) = guard.render([text.item(at, kind)], Mode.GENERATE)[0]
            for answer, weight in said(text).items():
                ids = [*words.text_ids(answer), end]
                rows.append([*prompt, *ids])
                weights.append(weight)
                lengths.append(len(ids))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _train(model, rows, weights, lengths)
    model.save_pretrained(folder)
    return folder


def _train(model: Any, rows: list[list[int]], weights: list[float], lengths: list[int]) -> None:
    torch.manual_seed(0)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    targets = torch.full_like(ids, -100)
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        targets[at, len(row) - length : len(row)] = torch.tensor(row[-length:])
    share = torch.tensor(weights)[:, None] / sum(weights)
    mixed = sum(weight * -torch.tensor(weight).log().item() for weight in weights if weight) / sum(weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(_STEPS):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets[:, 1:], ignore_index=-100, reduction="none"
        )
        loss = (losses * share).sum()
        if loss.item() < mixed + _LOSS:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
