"""Puts torch's own RMSNorm in the place of a model's, which is written as six operations. Knows nothing of prompts.

On CUDA each operation is a launch of its own, and a layer has two norms or four: with torch's, which is one kernel, a
fifth of a layer's launches go. Each norm is compared with what it replaces, on random input, before that goes.
"""

from __future__ import annotations

import types
from typing import Any, Final

import torch
from torch import nn

from infra.log import get_logger

log = get_logger(__name__)

_ROWS: Final = 8
_TOLERANCE: Final = {torch.float32: 1e-5, torch.float16: 0.002, torch.bfloat16: 0.01}
"""Relative rms difference that rounding explains: a model rounds before it scales, and torch does not."""


@torch.inference_mode()
def fuse_norms(model: Any) -> int:  # noqa: ANN401 - transformers has no types
    """Replace every RMSNorm that torch computes alike; returns how many."""
    fused = sum(_fuse(module) for module in model.modules() if _is_rms_norm(module))
    log.info("norms_fused", norms=fused)
    return fused


def _is_rms_norm(module: Any) -> bool:  # noqa: ANN401
    return (
        type(module).__name__.endswith("RMSNorm")
        and not isinstance(module, nn.RMSNorm)
        and not hasattr(module, "_hf_hook")  # accelerate moves its weight, or holds it elsewhere
        and _epsilon(module) is not None
        and getattr(getattr(module, "weight", None), "ndim", 0) == 1
    )


def _epsilon(module: Any) -> float | None:  # noqa: ANN401
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return float(found) if isinstance(found, int | float) else None


def _fuse(norm: Any) -> bool:  # noqa: ANN401
    weight: torch.Tensor = norm.weight
    if weight.dtype not in _TOLERANCE:
        return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, _ROWS, len(weight), generator=generator).to(weight.device, weight.dtype)
    plain: torch.Tensor = norm(rows)
    mine = _fused(norm, rows)
    distance = (mine.float() - plain.float()).norm() / plain.float().norm().clamp_min(1e-12)
    if mine.dtype is not plain.dtype or not bool(distance <= _TOLERANCE[weight.dtype]):
        return False
    norm.forward = types.MethodType(_fused, norm)
    return True


def _fused(norm: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    return nn.functional.rms_norm(rows, norm.weight.shape, norm.weight, _epsilon(norm))
