"""A model of Qwen2.5-0.5B's shape with random weights and Qwen's real vocabulary, and real items in Libra's prompt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from schemas.guards import Mode
from schemas.messages import ChunkItem
from tests.support.checkpoints import qwen_tokenizer_json, write_checkpoint
from worker.guards.base import PromptIds
from worker.guards.libra import LibraGuard

GUARD: Final = "qwen2.5-0.5b-instruct"
SHAPE: Final = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4_864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
_ROOT: Final = Path(__file__).parents[3]
_REAL: Final = _ROOT.parent / "shared" / "data" / "jade_medium.json"
_DEMO: Final = _ROOT / "producer" / "data" / "demo.jsonl"


def write_model(folder: Path) -> Path:
    """The checkpoint in bfloat16, always the same weights."""
    write_checkpoint(folder, qwen_tokenizer_json(), context_tokens=32_768)
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def guard_of(folder: Path) -> LibraGuard:
    """Libra's prompt over that checkpoint's tokenizer."""
    return LibraGuard(folder, name=GUARD, model="random weights")


def stratified_items(count: int) -> list[ChunkItem]:
    """Real items in their file's order, evenly spread over all lengths; the demo set where there are no others.

    More than the file holds: the same again, each time with another number at the question's end, so that no two are
    the same item.
    """
    source = _REAL if _REAL.exists() else _DEMO
    text = source.read_text(encoding="utf-8")
    rows = json.loads(text) if source.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    by_length = sorted(range(len(rows)), key=lambda at: len(rows[at]["question"]) + len(rows[at]["response"]))
    rounds, once = -(-count // len(rows)), min(count, len(rows))
    chosen = sorted(by_length[int((step + 0.5) * len(rows) / once)] for step in range(once))
    return [
        ChunkItem(
            seq=turn * len(rows) + at,
            question=rows[at]["question"] + (f" {turn}" if turn else ""),
            response=rows[at]["response"],
        )
        for turn in range(rounds)
        for at in chosen
    ][:count]


def rendered(guard: LibraGuard, items: Sequence[ChunkItem], mode: Mode) -> list[PromptIds]:
    """The ids of every prompt, in the items' order."""
    return [prompt for windows in guard.render(items, mode) for prompt in windows]


def left_padded(prompts: Sequence[PromptIds], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both (prompts, longest prompt), padded before the text as generation wants it."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def seconds_of(action: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
