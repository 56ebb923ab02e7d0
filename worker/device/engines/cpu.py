"""Makes a loaded model's linear layers fast on a CPU. Knows nothing of prompts or guards.

Two changes, both measured in docs/decisions/0016: the weights of bfloat16 layers are laid out once as oneDNN's
kernels want them, where torch would do so at each call; and the product inside a gated MLP overwrites its input
in place of filling fresh memory. Each part is compared with what it replaces, on random input, before that goes.
"""

from __future__ import annotations

import types
from typing import Any, Final

import torch
from torch import nn
from transformers.activations import SiLUActivation

from infra.log import get_logger

log = get_logger(__name__)

_LAID_OUT_FOR: Final = 512
"""Rows of a typical batch: a hint to oneDNN; any number of rows runs."""
_PROBE_ROWS: Final = 8
_SILU: Final = (nn.SiLU, SiLUActivation)
_TOLERANCE: Final = 0.02
"""Relative rms difference that rounding to bfloat16 explains."""


class LaidOutLinear(nn.Module):
    """A linear layer whose weight (out, in) is kept in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _LAID_OUT_FOR)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return product


def lay_out(model: Any) -> int:  # noqa: ANN401 - transformers has no types
    """Speed up every part of the model that can be; returns how many parts were replaced.

    The output embedding stays: it is read one row per prompt, and often is the input embedding too.
    """
    if not torch._C._has_mkldnn or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child is head or hasattr(child, "_hf_hook"):
                continue
            if child.weight.device.type == "cpu" and child.weight.dtype is torch.bfloat16:
                replaced += _replace(parent, name, child)
        if all(hasattr(parent, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            replaced += _gate_in_place(parent)
    log.info("laid_out", parts=replaced)
    return replaced


@torch.inference_mode()
def _replace(parent: nn.Module, name: str, linear: nn.Linear) -> bool:
    rows = _random(linear.in_features)
    try:
        mine = LaidOutLinear(linear)
        equal = _equal(mine(rows), linear(rows))
    except RuntimeError as error:
        log.warning("layer_left_alone", name=name, error=str(error)[:200])
        return False
    if equal:
        setattr(parent, name, mine)
    return equal


@torch.inference_mode()
def _gate_in_place(mlp: Any) -> bool:  # noqa: ANN401 - any architecture's gated MLP
    if not isinstance(mlp.gate_proj, LaidOutLinear):
        return False
    rows = _random(mlp.gate_proj.in_features)
    before = mlp(rows)
    mlp.forward = types.MethodType(_gated, mlp)
    if _equal(mlp(rows), before):
        return True
    del mlp.forward
    return False


def _gated(mlp: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    gate = mlp.gate_proj(rows)
    gate = nn.functional.silu(gate, inplace=True) if type(mlp.act_fn) in _SILU else mlp.act_fn(gate)
    product: torch.Tensor = mlp.down_proj(gate.mul_(mlp.up_proj(rows)))
    return product


def _random(features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, _PROBE_ROWS, features, generator=generator).to(torch.bfloat16)


def _equal(mine: torch.Tensor, plain: torch.Tensor) -> bool:
    distance = (mine.float() - plain.float()).norm() / plain.float().norm().clamp_min(1e-12)
    return bool(distance <= _TOLERANCE)
