"""Low-rank adapters by the library peft: put on a model, written alone, merged into its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from infra.errors import GuardError, UsageError
from worker.training.lm import load_lm, save_lm
from worker.training.recipe import Lora

try:
    import peft
except ImportError as error:
    raise UsageError("a recipe with lora needs peft: pip install 'libra-fleet[train]'") from error

_WEIGHTS: Final = "adapter_model.safetensors"
_NAME: Final = "default"
"""peft's name of the only adapter; it stands in a running model's names, and not in a file's."""
_MARK: Final = ".lora_"


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
    """Write the adapters' weights and configuration alone, in peft's own form.

    The weights are picked by name here: peft's own writer finds none where activation checkpointing under FSDP has
    wrapped the layers, and does not say so.

    Raises:
        GuardError: there are none among the weights.
    """
    found = {name.replace(f".{_NAME}.", "."): tensor.contiguous() for name, tensor in weights.items() if _MARK in name}
    if not found:
        raise GuardError("the model has no adapter weights to write")
    save_file(found, folder / _WEIGHTS)
    model.peft_config[_NAME].save_pretrained(folder)


def merge(base: Path, adapter: Path, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the base with the adapter added to its weights (computed in float32): a checkpoint like any other.

    Raises:
        GuardError: the adapter is not one of this base.
    """
    model = peft.get_peft_model(load_lm(base, dtype=torch.float32), peft.PeftConfig.from_pretrained(str(adapter)))
    result: Any = peft.set_peft_model_state_dict(model, load_file(adapter / _WEIGHTS))
    missing = [name for name in result.missing_keys if _MARK in name]
    if missing or result.unexpected_keys:
        raise GuardError(f"{adapter} is no adapter of {base}: {len(missing)} weights are missing")
    save_lm(model.merge_and_unload(), folder, base=base, dtype=dtype)
