"""What the arithmetic of a model's head does to labels: bfloat16 logits as models give them, or float32 label rows.

Hidden states and two label rows are drawn so that logits lie around 20, as those of trained models do: bfloat16 tells
numbers there apart by 0.125. Truth is the same product in float64. Nothing of a model runs: this is the head alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

from tests.benchmarks.kit.figures import Figure

_ROWS: Final = 100_000
_WIDTH: Final = 896
_MEAN, _SPREAD = 20.0, 2.0


def run(*, quick: bool) -> Iterator[Figure]:
    """Labels that differ from float64's, and how far p(unsafe) is off, before and after."""
    torch.manual_seed(1)
    rows = _ROWS // 10 if quick else _ROWS
    hidden = torch.randn(rows, _WIDTH).bfloat16()
    # Two label rows whose logits have a common part and a small difference, as those of "safe" and "unsafe" have.
    common, apart = torch.randn(_WIDTH), torch.randn(_WIDTH)
    weights = torch.stack((common + apart / 2, common - apart / 2)) * _SPREAD / _WIDTH**0.5
    hidden = (hidden.float() + _MEAN * common / (_SPREAD * _WIDTH**0.5)).bfloat16()
    weights = weights.bfloat16()
    truth = hidden.double() @ weights.double().T
    for name, logits in (
        ("bfloat16 logits of the head", (hidden @ weights.T).double()),
        ("float32 label rows", (hidden.float() @ weights.float().T).double()),
    ):
        margins, true_margins = logits[:, 1] - logits[:, 0], truth[:, 1] - truth[:, 0]
        flips = ((margins > 0) != (true_margins > 0)).double().mean().item()
        off = (torch.sigmoid(margins) - torch.sigmoid(true_margins)).abs()
        yield Figure("label_rows", f"{name}: labels that differ", flips, "share")
        yield Figure("label_rows", f"{name}: exact ties", (margins == 0).double().mean().item(), "share")
        yield Figure("label_rows", f"{name}: p(unsafe) off, mean", off.mean().item(), "")
        yield Figure("label_rows", f"{name}: p(unsafe) off, worst", off.max().item(), "")
    yield Figure("label_rows", "logits, mean", truth.mean().item(), "")
