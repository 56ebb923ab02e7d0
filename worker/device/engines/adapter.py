"""A LoRA adapter in a loaded model: if it fits, and merged by peft, so that the engine runs one plain model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch

from infra.errors import GuardError
from worker.guards.adapter import Adapter

_SHOWN: Final = 3
_PREFIX: Final = "base_model.model."


def check_adapter_fit(empty: Any, base: Path, adapter: Adapter) -> None:  # noqa: ANN401 - transformers has no types
    """Compare the adapter's keys and shapes with those that peft gives the base's model, which is on the meta device.

    Raises:
        GuardError: peft is not installed, or they differ.
    """
    peft, config = _config_of(adapter)
    other = f"name the base that it was trained on ({adapter.base_name})"
    # Beside an adapter of embeddings or head peft may save the whole layer.
    whole_layers = any(key.endswith(".base_layer.weight") for key in adapter.tensors)
    if odd := [key for key in adapter.tensors if not key.startswith(_PREFIX) or ".default." in key]:
        raise GuardError(
            f"{adapter.folder}: {_first(odd)} is not named as peft names it in a file; save the adapter inside its "
            "wrapper with save_pretrained"
        )
    try:
        wrapped = peft.get_peft_model(empty, config, low_cpu_mem_usage=True)
        tensors = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=whole_layers)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise GuardError(f"{adapter.folder} does not fit {base}: {reason}; {other}") from error
    wanted = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    found = {key: tensor.shape for key, tensor in adapter.tensors.items()}
    misshapen = sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key])
    if misshapen:
        key = misshapen[0]
        raise GuardError(
            f"{adapter.folder} does not fit {base}: {key} is {_by(found[key])}, and the base takes "
            f"{_by(wanted[key])}; {other}"
        )
    for what, keys in (("holds", found.keys() - wanted.keys()), ("lacks", wanted.keys() - found.keys())):
        if keys:
            raise GuardError(f"{adapter.folder} does not fit {base}: it {what} {_first(sorted(keys))}; {other}")


def merged(model: Any, adapter: Adapter) -> Any:  # noqa: ANN401
    """The model with the adapter in its own weights.

    Raises:
        GuardError: the adapter changes nothing, or makes weights that are no numbers.
    """
    peft, config = _config_of(adapter)
    try:
        wrapped = peft.PeftModel.from_pretrained(model, str(adapter.folder), config=config)
        trained = [
            weight for name, weight in wrapped.named_parameters() if ".lora_B." in name or "lora_embedding_B" in name
        ]
        if trained and not config.modules_to_save and not any(bool(weight.any()) for weight in trained):
            raise GuardError(
                f"{adapter.folder} changes nothing: its lora_B are zero throughout; it was saved before its training"
            )
        return wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise GuardError(f"cannot merge {adapter.folder}: {' '.join(str(error).split())[:200]}") from error


def _config_of(adapter: Adapter) -> tuple[Any, Any]:
    try:
        import peft  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise GuardError(
            f"{adapter.folder} is an adapter, which peft merges: pip install 'libra-fleet[adapters]'"
        ) from error
    config = peft.LoraConfig.from_pretrained(str(adapter.folder))
    config.init_lora_weights = True  # what it began with is gone: the weights are loaded
    config.base_model_name_or_path = None  # wherever it lay, it is the base that is named now
    return peft, config


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN:,} more keys" if len(keys) > _SHOWN else "")
