"""What the stages stand on: where results go, the device, two models of random weights, real items as prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from schemas.guards import Mode
from schemas.messages import ChunkItem
from tests.benchmarks.kit import half_billion
from tests.gpu.places import models_folder, note
from worker.device.engines.transformers import TransformersEngine
from worker.guards.base import PromptIds
from worker.guards.libra import LibraGuard

GIB: Final = 1 << 30
SHAPES: Final = {
    "half": {**half_billion.SHAPE},
    "seven": {
        **half_billion.SHAPE,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""Qwen2.5's 0.5B and 7B."""
_TOY: Final = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Ground:
    """One stage's ground. `dry`: on a CPU with toy shapes."""

    out: Path
    stage: str
    dry: bool
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda:0"

    @property
    def models(self) -> Path:
        return models_folder(self.out, dry=self.dry)

    def say(self, **facts: Any) -> None:
        """Write down facts."""
        print(note(self.out, self.stage, t=round(time.monotonic() - self.started, 1), **facts), flush=True)

    def check(self, name: str, ok: object, **facts: Any) -> None:
        """Write down what must hold, and whether it does."""
        self.say(check=name, ok=bool(ok), **facts)

    def shape(self, name: str) -> dict[str, Any]:
        return {**SHAPES[name], **(_TOY if self.dry else {})}

    def guard(self, name: str) -> LibraGuard:
        return half_billion.guard_of(self.models / name)

    def engine(self, name: str, *, prefix: bool = True, **options: Any) -> TransformersEngine:
        """The engine on one of the models; what it found out at load is written down."""
        began = time.monotonic()
        device = options.pop("device", self.device)
        ids = self.guard(name).prefix_ids(Mode.SCORE) if prefix else ()
        engine = TransformersEngine(self.models / name, device=device, prefix_ids=ids, **options)
        info = engine.info
        self.say(
            engine=name,
            load_s=round(time.monotonic() - began, 1),
            **{"dtype": info.dtype, "packs": info.packs, "prefix": info.prefix_tokens, "overlaps": info.overlaps},
            **{"budget": info.max_batch_tokens, "generate_budget": info.max_generate_tokens},
        )
        return engine

    def prompts(self, name: str, count: int) -> list[PromptIds]:
        return half_billion.rendered(self.guard(name), items(count), Mode.SCORE)

    def some(self, count: int, dry: int) -> int:
        return dry if self.dry else count


def items(count: int) -> list[ChunkItem]:
    """Real items where the checkout has them beside it, else the demo set; each prompt once."""
    return half_billion.stratified_items(count)


def forget(*_: object) -> None:
    """Give the memory of models that were let go back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def batches(prompts: Sequence[PromptIds], budget: int, prefix: int, most_items: int) -> list[list[PromptIds]]:
    """Batches of neighbours in length within a budget of uncached tokens."""
    found: list[list[PromptIds]] = [[]]
    size = 0
    for prompt in sorted(prompts, key=len):
        tokens = max(1, len(prompt) - prefix)
        if found[-1] and (size + tokens > budget or len(found[-1]) == most_items):
            found.append([])
            size = 0
        found[-1].append(prompt)
        size += tokens
    return found
