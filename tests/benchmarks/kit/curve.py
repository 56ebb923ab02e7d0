"""A curve as an SVG that docs can show, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure


def draw_curve(path: Path, points: Mapping[int, float], *, title: str, across: str, up: str) -> None:
    """Draw multiples of the first point over their numbers, both on scales of base 2, beside the ideal line."""
    with mpl.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        numbers, values = list(points), list(points.values())
        axes.plot(numbers, numbers, color="0.7", linestyle="--", label="ideal")
        axes.plot(numbers, values, marker="o", color="tab:blue", label="measured")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(numbers, [f"{number}" for number in numbers])
        axes.set_yticks(numbers, [f"{number}" for number in numbers])
        axes.set(title=title, xlabel=across, ylabel=up)
        axes.grid(color="0.92")
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
