"""A stage's measurements as a small SVG: training loss and dev NLL on the left, macro F1 on the right, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from worker.training.checkpoints import Evaluation

_WIDTH, _HEIGHT, _MARGIN = 320, 180, 36
_COLOURS: Final = {"training loss": "#8a5a00", "dev NLL": "#0b5cad", "macro F1": "#1a7f37"}


def write_curves(path: Path, stages: Mapping[str, Sequence[Evaluation]]) -> None:
    """Write one row of two plots per stage."""
    rows = []
    for number, (name, history) in enumerate(stages.items()):
        losses = {"training loss": [at.loss for at in history], "dev NLL": [at.dev_nll for at in history]}
        scores = {"macro F1": [at.macro_f1 for at in history]}
        steps = [at.step for at in history]
        highest = max(value for values in losses.values() for value in values)
        top = number * (_HEIGHT + _MARGIN)
        rows.append(_plot((0, top), f"{name}: nats", steps, losses, highest))
        rows.append(_plot((_WIDTH + _MARGIN, top), f"{name}: macro F1", steps, scores, 1.0))
    width, height = 2 * _WIDTH + _MARGIN, len(stages) * (_HEIGHT + _MARGIN)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n{"".join(rows)}</svg>\n',
        encoding="utf-8",
    )


def _plot(
    corner: tuple[int, int], title: str, steps: Sequence[int], lines: Mapping[str, Sequence[float]], highest: float
) -> str:
    """One plot with its frame, from 0 to `highest`; `corner` is its left and top."""
    left, top = corner
    x0, y0 = left + _MARGIN, top + _HEIGHT
    width, height = _WIDTH - _MARGIN - 8, _HEIGHT - _MARGIN
    reach = highest or 1.0

    def point(step: int, value: float) -> str:
        return f"{x0 + width * step / steps[-1]:.1f},{y0 - height * value / reach:.1f}"

    parts = [
        f'<text x="{x0}" y="{top + 14}">{title}</text>',
        f'<path d="M{x0} {y0 - height}V{y0}H{x0 + width}" fill="none" stroke="#888"/>',
        f'<text x="{x0 - 4}" y="{y0 - height + 8}" text-anchor="end">{highest:.2f}</text>',
        f'<text x="{x0 + width}" y="{y0 + 13}" text-anchor="end">step {steps[-1]:,}</text>',
    ]
    for number, (name, values) in enumerate(lines.items()):
        colour = _COLOURS[name]
        points = [point(step, value) for step, value in zip(steps, values, strict=True)]
        marks = "".join('<circle cx="{}" cy="{}" r="2"/>'.format(*at.split(",")) for at in points)
        parts.append(f'<g fill="{colour}"><polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>{marks}')
        parts.append(f'<text x="{x0 + width}" y="{top + 28 + 13 * number}" text-anchor="end">{name}</text></g>')
    return "\n".join(parts) + "\n"
