"""A tiny checkpoint that answers the plain texts of `libra guards check` rightly, and ways to spoil its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from infra.guard_catalogue import GUARDS
from schemas.guards import Mode
from tests.support.families import write_family
from tests.support.planted import HEAD, changed
from worker.checkup.texts import KINDS, plain_texts
from worker.guards.registry import load_guard
from worker.guards.vocabulary import Vocabulary

NAME = "xiangxin-guardrails-text"
"""A guard whose prompt is the text and whose answer a word, so that little has to be learnt."""
_STEPS = 300
_LOSS = 0.05
_RATE = 1e-2


def write_taught(folder: Path) -> Path:
    """A folder of this guard, trained until it says of each plain text what its label is, and no further."""
    from transformers import AutoModelForCausalLM

    write_family(folder, GUARDS[NAME])
    guard, words = load_guard(NAME, str(folder)), Vocabulary(folder)
    rows, lengths = [], []
    for kind in (kind for kind in KINDS if kind in guard.kinds):
        for at, text in enumerate(plain_texts()):
            (prompt,) = guard.render([text.item(at, kind)], Mode.GENERATE)[0]
            answer = [*words.text_ids(text.label.value), guard.stop_ids[0]]
            rows.append([*prompt, *answer])
            lengths.append(len(answer))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _train(model, rows, lengths)
    model.save_pretrained(folder)
    return folder


def _train(model: Any, rows: list[list[int]], lengths: list[int]) -> None:
    torch.manual_seed(0)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    targets = torch.full_like(ids, -100)
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        targets[at, len(row) - length : len(row)] = torch.tensor(row[-length:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0)
    for _ in range(_STEPS):
        loss = model(input_ids=ids, labels=targets).loss
        if loss.item() < _LOSS:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"not learnt in {_STEPS} steps")


def _head(change: Callable[[torch.Tensor, int, int], None]) -> Callable[[Path], None]:
    """Spoil by the head's rows of both labels."""

    def spoil(folder: Path) -> None:
        words = Vocabulary(folder)
        (safe,), (unsafe,) = words.text_ids("safe"), words.text_ids("unsafe")

        def rewritten(head: torch.Tensor) -> torch.Tensor:
            head = head.clone()
            change(head, safe, unsafe)
            return head

        changed(HEAD, rewritten)(folder)

    return spoil


def _exchange(head: torch.Tensor, safe: int, unsafe: int) -> None:
    head[[safe, unsafe]] = head[[unsafe, safe]]


def _say_safe(head: torch.Tensor, safe: int, unsafe: int) -> None:
    head[unsafe] = (head[safe] + head[unsafe]) / 2
    head[safe] = head[unsafe] * 1.05


def _say_other_words(head: torch.Tensor, safe: int, unsafe: int) -> None:
    others = [at for at in range(len(head)) if at not in (safe, unsafe)][-40:-38]
    head[[safe, unsafe, *others]] = head[[*others, safe, unsafe]]


def never_write_unsafe(folder: Path) -> None:
    """Spoil what is written and not what is scored, as a published generation_config.json may."""
    suppressed = list(Vocabulary(folder).text_ids("unsafe"))
    path = folder / "generation_config.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {"suppress_tokens": suppressed}))


exchange_labels = _head(_exchange)
always_safe = _head(_say_safe)
other_words = _head(_say_other_words)
