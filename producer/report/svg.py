"""A matplotlib figure as SVG that lives inside a page: in the page's own colours and font, the same bytes each time.

Colours are drawn as stand-ins and become CSS variables, so that one picture serves a light room, a dark one and paper.
No text from data is ever drawn: names stand in the page's HTML, where they are escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#010101"
SOFT: Final = "#010102"
LINE: Final = "#010103"
ACCENT: Final = "#010104"
SAFE: Final = "#010105"
UNSAFE: Final = "#010106"
SERIES: Final = ("#010107", "#010108", "#010109", "#01010a", "#01010b", "#01010c")
"""Colours of sources and guards, in this order."""

_VARIABLES: Final = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    ACCENT: "--accent",
    SAFE: "--safe",
    UNSAFE: "--unsafe",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
_WIDTH_PT, _HEIGHT_PT = 400, 264
"""About the width of a phone's screen, so that the letters are of a readable size on it."""

_STYLE: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "path.simplify_threshold": 0.2,
    "svg.fonttype": "none",
    "text.color": SOFT,
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
}


class Picture:
    """One figure with one pair of axes; `svg` is filled when the drawing has ended."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = Markup()


@contextmanager
def drawing(name: str, says: str, *, across: str, up: str) -> Iterator[Picture]:
    """Axes to draw on. `name` keeps ids apart within a page; `says` is read to those who cannot see the picture."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH_PT / 72, _HEIGHT_PT / 72), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.set(xlabel=across, ylabel=up)
        picture = Picture(axes)
        yield picture
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    picture.svg = _inlined(written.getvalue(), name, says)


def _inlined(svg: str, name: str, says: str) -> Markup:
    """Without all that only a file of its own needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"(?<=\d)(\.\d\d)\d+", r"\1", svg)
    referenced = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in referenced else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"\s*\n\s*", " ", svg)
    head = f'<svg class="picture" role="img" aria-label="{escape(says)}" viewBox="0 0 {_WIDTH_PT} {_HEIGHT_PT}">'
    return Markup(re.sub(r"^<svg[^>]*>", lambda _: head, svg, count=1))  # noqa: S704 - no text from data is in it
