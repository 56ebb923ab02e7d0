"""Low-rank adapters by the library peft: put on a model, written alone, merged into its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from infra.errors import UsageError
from worker.training.lm import load_lm, save_lm
from worker.training.recipe import Lora

try:
    import peft
except ImportError as error:
    raise UsageError("a recipe with lora needs peft: pip install 'libra-fleet[train]'") from error


def adapted(model: Any, lora: Lora) -> Any:  # noqa: ANN401 - neither library has types
    """The model with fresh adapters, which alone are trained; at first they change nothing."""
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
    )
    return peft.get_peft_model(model, config)


def save_adapter(model: Any, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:  # noqa: ANN401
    """Write the adapters' weights and configuration alone."""
    model.save_pretrained(folder, state_dict=dict(weights))


def merge(base: Path, adapter: Path, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the base with the adapter added to its weights (computed in float32): a checkpoint like any other."""
    model = peft.PeftModel.from_pretrained(load_lm(base, dtype=torch.float32), adapter)
    save_lm(model.merge_and_unload(), folder, base=base, dtype=dtype)
