"""A measured figure with its bar, and how figures are shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One number. `at_least` or `at_most` is its bar; a figure with neither is reported only."""

    bench: str
    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    runs: tuple[float, ...] = field(default=())
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the bar is met; a figure without a bar always meets it."""
        low_enough = self.at_most is None or self.value <= self.at_most
        return low_enough and (self.at_least is None or self.value >= self.at_least)

    @property
    def bar(self) -> str:
        """The bar as text."""
        if self.at_least is not None:
            return f"≥ {_number(self.at_least)}"
        return f"≤ {_number(self.at_most)}" if self.at_most is not None else ""

    def to_json(self) -> dict[str, Any]:
        """As written to the JSON file."""
        return {**asdict(self), "met": self.met}


def median_figure(bench: str, name: str, runs: Sequence[float], unit: str, **options: Any) -> Figure:
    """The median of several runs, which are kept beside it."""
    return Figure(bench, name, statistics.median(runs), unit, runs=tuple(runs), **options)


def show(figures: Sequence[Figure], console: Console) -> None:
    """Print a table: figure, spread over the runs, bar, and whether it is met."""
    table = Table("bench", "figure", "value", "unit", "runs (min … max)", "bar", "", "note", box=None, pad_edge=False)
    for figure in figures:
        verdict = "" if not figure.bar else "[green]met[/]" if figure.met else "[red]MISSED[/]"
        value = _number(figure.value)
        table.add_row(figure.bench, figure.name, value, figure.unit, _spread(figure), figure.bar, verdict, figure.note)
    console.print(table)


def as_markdown(figures: Sequence[Figure]) -> str:
    """The same for a page: one table, what missed its bar in bold."""
    rows = ["| bench | figure | measured | runs | bar |", "|---|---|---|---|---|"]
    for figure in figures:
        value = f"{_number(figure.value)} {figure.unit}".strip()
        measured = value if figure.met else f"**{value}: missed**"
        name = f"{figure.name} ({figure.note})" if figure.note else figure.name
        rows.append(f"| {figure.bench} | {name} | {measured} | {_spread(figure)} | {figure.bar} |")
    return "\n".join(rows) + "\n"


def _spread(figure: Figure) -> str:
    return f"{len(figure.runs)}: {_number(min(figure.runs))} … {_number(max(figure.runs))}" if figure.runs else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
