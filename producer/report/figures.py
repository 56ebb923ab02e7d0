"""The pictures of a run: what is drawn from its traced scores and its pace. Knows no HTML and no ledger.

Each is a matplotlib figure as SVG that lives inside a page: in the page's own colours and font, the same bytes each
time. Colours are drawn as stand-ins and become CSS variables, so that one picture serves a light room, a dark one and
paper. No text from data is ever drawn: names stand in the page's HTML, where they are escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import nan
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from infra.ledger.stats import Pace
from infra.metrics.counts import COUNT_METRICS, Confusion
from infra.metrics.curves import THRESHOLDS, Bin, Curve, ThresholdSweep
from producer.report.view import SWEPT
from schemas.runs import MetricGroup

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
    svg = written.getvalue()  # without all that only a file of its own needs
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
    picture.svg = Markup(re.sub(r"^<svg[^>]*>", lambda _: head, svg, count=1))  # noqa: S704 - no text from data is in it


_Line = tuple[list[float], list[float]]
_GUESS: Final[dict[str, Any]] = {"color": SOFT, "linewidth": 0.8, "linestyle": (0, (4, 3))}
_EDGES: Final = tuple(place / 15 for place in range(16))


class Key(NamedTuple):
    """A line of a legend: the CSS variable of its colour, and its words."""

    variable: str
    words: str


class Shown(NamedTuple):
    """A picture with its title, its legend and what it says in words."""

    title: str
    svg: Markup
    caption: str
    keys: tuple[Key, ...] = ()


def of_scores(traced: ThresholdSweep, whole: MetricGroup | None) -> list[Shown]:
    """The pictures over p_unsafe, as far as they can be drawn."""
    shown = []
    if traced.whole:
        shown += _curves(traced.whole, traced.by_source, whole)
    if any(part.safe or part.unsafe for part in traced.bins):
        shown += _distributions(traced.bins, whole)
    if traced.sweep:
        with drawing(
            "sweep", "Metrics over the threshold", across="called unsafe from p(unsafe)", up="all items together"
        ) as picture:
            axes = picture.axes
            _in_squares(axes)
            axes.axvline(0.5, **_GUESS)
            for colour, (metric, _) in zip(SERIES, SWEPT, strict=False):
                formula = COUNT_METRICS[metric].formula  # what is not a number is left out of a line
                values = [nan if (v := formula(counts)) is None else v for counts in traced.sweep]
                axes.plot(THRESHOLDS, values, color=colour)
        keys = tuple(Key(f"--series-{at}", words) for at, (_, words) in enumerate(SWEPT))
        words = "Over all items at once, not averaged over sources. Choose a threshold on other data than you report."
        shown.append(Shown("Threshold sweep", picture.svg, words, keys))
    return shown


def of_pace(pace: Pace) -> list[Shown]:
    """Throughput and latency over the time of a run."""
    across = "seconds since the first verdict"
    with drawing("throughput", "Throughput over time", across=across, up="items/s") as picture:
        axes = picture.axes
        axes.grid(visible=False, axis="x")
        starts = [bar.begins_s for bar in pace.bars]
        rates = [bar.settled / pace.bar_s for bar in pace.bars]
        axes.bar(starts, rates, width=pace.bar_s * 0.9, align="edge", color=ACCENT, linewidth=0)
        axes.set_xlim(0, pace.bar_s * len(pace.bars))
    words = f"Items settled in stretches of {pace.bar_s:,.3g} s. They settle chunk by chunk, which makes steps."
    shown = [Shown("Throughput", picture.svg, words)]
    if all(bar.device_p50_s is None for bar in pace.bars):
        return shown
    series = (
        ("queue_p50_s", "--series-0", "queue, median"),
        ("queue_p95_s", "--series-1", "queue, 95 %"),
        ("device_p50_s", "--series-2", "device, median"),
        ("device_p95_s", "--series-3", "device, 95 %"),
    )
    with drawing("latency", "Latency over time", across=across, up="seconds") as picture:
        axes = picture.axes
        for colour, (field, _, _) in zip(SERIES, series, strict=False):
            points = [(bar.begins_s + pace.bar_s / 2, getattr(bar, field)) for bar in pace.bars]
            known = [(at, value) for at, value in points if value is not None]
            axes.plot(
                [at for at, _ in known], [value for _, value in known], ".-", color=colour, linewidth=1.1, markersize=4
            )
        axes.set_xlim(0, pace.bar_s * len(pace.bars))
        axes.set_ylim(bottom=0)
    keys = tuple(Key(variable, words) for _, variable, words in series)
    words = "Of chunks: how long they waited in the queue, and on the device."
    return [*shown, Shown("Latency", picture.svg, words, keys)]


def _in_squares(axes: Axes) -> None:
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=ticks, yticks=ticks)


def _curves(whole: Curve, by_source: dict[str, Curve], group: MetricGroup | None) -> list[Shown]:
    """ROC and precision over recall, with a dot for the run's own counts where both classes are there."""
    point = None if group is None else Confusion(*(int(group.value(name) or 0) for name in Confusion._fields))
    if point is not None and not (point.tp + point.fn and point.fp + point.tn):
        point = None
    with drawing("roc", "ROC curve", across="safe items called unsafe", up="unsafe items found") as roc:
        _in_squares(roc.axes)
        roc.axes.plot([0, 1], [0, 1], **_GUESS)
        _draw_curves(roc.axes, whole.roc(), [curve.roc() for curve in by_source.values()])
        if point:
            roc.axes.plot([point.fp / (point.fp + point.tn)], [point.tp / (point.tp + point.fn)], "o", color=INK)
    base = whole.found[-1] / (whole.found[-1] + whole.accused[-1])
    with drawing("pr", "Precision over recall", across="recall of unsafe", up="precision of unsafe") as picture:
        _in_squares(picture.axes)
        picture.axes.axhline(base, **_GUESS)
        _draw_curves(picture.axes, whole.precision_recall(), [curve.precision_recall() for curve in by_source.values()])
        if point and point.tp + point.fp:
            picture.axes.plot([point.tp / (point.tp + point.fn)], [point.tp / (point.tp + point.fp)], "o", color=INK)
    sources = (Key(f"--series-{at}", source or "(no source)") for at, source in enumerate(by_source))
    keys = (Key("--accent", "all items"), *sources)
    auroc = f"AUROC {_value(group, 'auroc')} over all items; the dashed diagonal is a guess."
    auprc = f"Average precision {_value(group, 'auprc')} over all items; the dashed line, {base:.3f}, is a guess."
    return [
        Shown("ROC curve", roc.svg, f"{auroc} The dot is the run as judged.", keys),
        Shown("Precision and recall", picture.svg, f"{auprc} The dot is the run as judged.", keys),
    ]


def _draw_curves(axes: Axes, whole: _Line, by_source: Iterable[_Line]) -> None:
    for colour, line in zip(SERIES, by_source, strict=False):
        axes.plot(*line, color=colour, linewidth=1.1)
    axes.plot(*whole, color=ACCENT)


def _value(group: MetricGroup | None, name: str) -> str:
    value = group.value(name) if group else None
    return "–" if value is None else f"{value:.4f}"


def _distributions(bins: Sequence[Bin], group: MetricGroup | None) -> list[Shown]:
    with drawing("reliability", "Reliability diagram", across="mean p(unsafe)", up="share truly unsafe") as reliability:
        axes = reliability.axes
        _in_squares(axes)
        axes.plot([0, 1], [0, 1], **_GUESS)
        means = [part.mean for part in bins if part.mean is not None]
        shares = [part.share_unsafe for part in bins if part.share_unsafe is not None]
        rows = [part.safe + part.unsafe for part in bins if part.mean is not None]
        axes.vlines(means, means, shares, colors=ACCENT, linewidth=0.9, alpha=0.55)
        sizes = [10 + 90 * count / max(rows) for count in rows]
        axes.scatter(means, shares, s=sizes, color=ACCENT, zorder=3, linewidths=0, clip_on=False)
    words = (
        f"ECE {_value(group, 'ece')}, Brier {_value(group, 'brier')}. On the diagonal a score means what it says; "
        "above it the guard is too mild, below it too strict. Large dots hold many items."
    )
    with drawing("scores", "Histogram of p(unsafe) by truth", across="p(unsafe)", up="items") as picture:
        axes = picture.axes
        axes.grid(visible=False, axis="x")
        centres = [(low + high) / 2 for low, high in pairwise(_EDGES)]
        width = 0.9 / len(bins)
        axes.bar(centres, [part.unsafe for part in bins], width=width, color=UNSAFE, linewidth=0)
        axes.bar(centres, [-part.safe for part in bins], width=width, color=SAFE, linewidth=0)
        axes.axhline(0, color=SOFT, linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_formatter(lambda count, _: f"{abs(count):,.0f}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    keys = Key("--unsafe", "truly unsafe, upwards"), Key("--safe", "truly safe, downwards")
    return [
        Shown("Reliability", reliability.svg, words),
        Shown("Scores", picture.svg, "A good guard's upper bars lean right, its lower ones left.", keys),
    ]
