"""The model's side of training: load it, put adapters on it, run rows through it, write its weights.

Shapes: n rows, T tokens of the longest row, K of the longest answer, V the vocabulary. The LM head runs over the
answers only: all logits of one row of 1,536 tokens would be 0.9 GB with the vocabulary of Qwen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from infra.errors import GuardError, UsageError
from worker.training.examples import Example
from worker.training.recipe import Lora

_IGNORED: Final = -100
_PAD: Final = 0
_COPIED: Final = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_OWN: Final = frozenset({"config.json", "libra.json", "model.safetensors.index.json", "adapter_config.json"})
"""Files of a base that its descendant does not inherit: it writes its own, or they are true of the base alone."""
_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_ADAPTER_NAME: Final = "default"
"""peft's name of the only adapter; it stands in a running model's names, and not in a file's."""
_ADAPTER_MARK: Final = ".lora_"


@dataclass(frozen=True)
class Batch:
    """Rows padded on the left: they end together. Ids, mask, positions: n x T; targets and weights: n x K."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            *(tensor.to(device) for tensor in (self.ids, self.mask, self.positions, self.targets, self.weights))
        )


def load_lm(folder: Path, *, dtype: torch.dtype) -> Any:  # noqa: ANN401 - transformers has no types
    """The causal language model in a folder, in training mode.

    Raises:
        GuardError: it cannot be loaded.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError) as error:
        raise GuardError(f"cannot load {folder}: {error}") from error
    return model.train()


def training_batch(rows: Sequence[Example], label_weight: float) -> Batch:
    """Rows whose answers are to be learnt: only an answer's ids have a target and a weight."""
    depth = max(len(row.ids) - row.answer for row in rows)
    targets = torch.full((len(rows), depth), _IGNORED)
    weights = torch.zeros((len(rows), depth))
    for at, row in enumerate(rows):
        start = depth - (len(row.ids) - row.answer)
        targets[at, start:] = torch.tensor(row.ids[row.answer :])
        weights[at, start:] = 1
        weights[at, start + row.label - row.answer] = label_weight
    return Batch(*_padded([row.ids for row in rows]), targets, weights)


def step_weight(rows: Sequence[Example], label_weight: float) -> float:
    """The summed weight of the rows' targets: the loss of a step is its weighted mean over them."""
    return sum(len(row.ids) - row.answer - 1 + label_weight for row in rows)


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:  # noqa: ANN401
    """Weighted sum of the negative log-likelihoods of the answers' ids, in nats."""
    # The logits after the last id predict nothing.
    logits = _last_logits(model, batch.ids, batch.mask, batch.positions, count=batch.targets.shape[1] + 1)[:, :-1]
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none", ignore_index=_IGNORED
    )
    return (losses * batch.weights.flatten()).sum()


@torch.no_grad()
def label_logprobs(
    model: Any,  # noqa: ANN401
    rows: Sequence[Example],
    first_ids: Sequence[int],
    *,
    device: torch.device,
) -> torch.Tensor:
    """Log-probability of each label's first id after each prompt, over the whole vocabulary: n x labels, float32."""
    padded = [tensor.to(device) for tensor in _padded([row.prompt for row in rows])]
    logits = _last_logits(model, *padded, count=1)[:, 0].float()
    return logits.log_softmax(dim=-1)[:, list(first_ids)]


def _last_logits(model: Any, *padded: torch.Tensor, count: int) -> torch.Tensor:  # noqa: ANN401
    """Logits after each of the last `count` ids, which come with mask and positions: n x count x V."""
    ids, mask, positions = padded
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=count)
    logits: torch.Tensor = output.logits
    return logits


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions of rows that end together."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), _PAD)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, width - len(row) :] = torch.tensor(row)
        mask[at, width - len(row) :] = 1
    return ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


def save_lm(
    model: Any,  # noqa: ANN401
    folder: Path,
    *,
    base: Path,
    dtype: torch.dtype,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint that can be served: weights in `dtype`, the base's tokenizer and template as they are.

    `weights`: the model's, where they are gathered from several devices; none: its own.
    """
    found = model.state_dict() if weights is None else weights
    model.save_pretrained(folder, state_dict={name: tensor.to(dtype) for name, tensor in found.items()})
    for pattern in _COPIED:
        for file in base.glob(pattern):
            if file.name not in _OWN:
                shutil.copyfile(file, folder / file.name)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # the library leaves them to their owner alone; a worker is often another user
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _peft() -> Any:  # noqa: ANN401
    try:
        import peft  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("a recipe with lora needs peft: pip install 'libra-fleet[train]'") from error
    return peft


def adapted(model: Any, lora: Lora) -> Any:  # noqa: ANN401
    """The model with fresh adapters, which alone are trained; at first they change nothing."""
    peft = _peft()
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
    """
    found = {
        name.replace(f".{_ADAPTER_NAME}.", "."): tensor.contiguous()
        for name, tensor in weights.items()
        if _ADAPTER_MARK in name
    }
    if not found:
        raise GuardError("the model has no adapter weights to write")
    save_file(found, folder / _ADAPTER_WEIGHTS)
    model.peft_config[_ADAPTER_NAME].save_pretrained(folder)


def merge(base: Path, adapter: Path, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the base with the adapter added to its weights (computed in float32): a checkpoint like any other.

    Raises:
        GuardError: the adapter is not one of this base.
    """
    peft = _peft()
    model = peft.get_peft_model(load_lm(base, dtype=torch.float32), peft.PeftConfig.from_pretrained(str(adapter)))
    result: Any = peft.set_peft_model_state_dict(model, load_file(adapter / _ADAPTER_WEIGHTS))
    missing = [name for name in result.missing_keys if _ADAPTER_MARK in name]
    if missing or result.unexpected_keys:
        raise GuardError(f"{adapter} is no adapter of {base}: {len(missing)} weights are missing")
    save_lm(model.merge_and_unload(), folder, base=base, dtype=dtype)
