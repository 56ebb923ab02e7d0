"""One temperature for a guard's scores, fitted on rows it never learnt from. Pure; knows no model.

A guard's margin is log P(unsafe) - log P(safe) for the two labels. Divided by a temperature it becomes the logit of the
calibrated probability (Guo et al. 2017, temperature scaling). The order of the scores and the label at 0.5 stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

COLDEST: Final = 0.05
HOTTEST: Final = 20.0
"""Bounds of a temperature: on rows that are told apart without an error the best one would be 0."""

_STEPS: Final = 100
_CLOSE: Final = 1e-12


@dataclass(frozen=True)
class Fit:
    """A temperature and the mean negative log-likelihood (nats per row) without and with it."""

    temperature: float
    nll_before: float
    nll_after: float
    rows: int


def p_unsafe(margin: float, temperature: float = 1) -> float:
    """The calibrated probability of unsafe."""
    scaled = margin / temperature
    return 1 / (1 + math.exp(-scaled)) if scaled > 0 else math.exp(scaled) / (1 + math.exp(scaled))


def mean_nll(margins: Sequence[float], unsafe: Sequence[bool], temperature: float = 1) -> float:
    """Mean negative log-likelihood of the truth, in nats."""
    signed = _signed(margins, unsafe)
    scaled = [-value / temperature for value in signed]
    return math.fsum(max(value, 0) + math.log1p(math.exp(-abs(value))) for value in scaled) / len(signed)


def fit_temperature(margins: Sequence[float], unsafe: Sequence[bool]) -> Fit:
    """The temperature within [COLDEST, HOTTEST] of the least mean NLL.

    Newton's method on the inverse temperature, in which the NLL is convex, kept inside a bracket that halves where a
    step would leave it.

    Raises:
        ValueError: no rows, fewer or more truths than margins, a margin that is not finite, or one class only.
    """
    signed = _signed(margins, unsafe)
    if not all(map(math.isfinite, signed)):
        raise ValueError("a margin is not finite")
    if len(set(unsafe)) < 2:
        raise ValueError("the rows are of one class only")
    before = mean_nll(margins, unsafe)
    inverse, low, high = 1.0, 1 / HOTTEST, 1 / COLDEST
    for _ in range(_STEPS):
        wrong = [p_unsafe(-value * inverse) for value in signed]
        slope = -math.fsum(p * value for p, value in zip(wrong, signed, strict=True))
        bend = math.fsum(p * (1 - p) * value * value for p, value in zip(wrong, signed, strict=True))
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / bend if bend > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if abs(following - inverse) <= _CLOSE * inverse:
            break
        inverse = following
    found = 1 / inverse
    after = mean_nll(margins, unsafe, found)
    # Rounding must not make it worse where 1 is already best.
    return Fit(found, before, after, len(signed)) if after < before else Fit(1.0, before, before, len(signed))


def _signed(margins: Sequence[float], unsafe: Sequence[bool]) -> list[float]:
    """Margins in favour of the truth."""
    if not margins or len(margins) != len(unsafe):
        raise ValueError("as many truths as margins are needed, and at least one")
    return [margin if truth else -margin for margin, truth in zip(margins, unsafe, strict=True)]
