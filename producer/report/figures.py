"""The pictures of a run: what is drawn from its traced scores and its pace. Knows no HTML and no ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from infra.ledger.stats import Pace
from infra.metrics.counts import COUNT_METRICS, Confusion
from infra.metrics.curves import THRESHOLDS, Bin, Curve, ThresholdSweep
from producer.report.svg import ACCENT, INK, SAFE, SERIES, SOFT, UNSAFE, drawing
from producer.report.view import SWEPT
from schemas.runs import MetricGroup

_EDGES: Final = tuple(place / 15 for place in range(16))


@dataclass(frozen=True)
class Key:
    """A line of a legend: the CSS variable of its colour, and its words."""

    variable: str
    words: str


@dataclass(frozen=True)
class Shown:
    """A picture with its title, its legend and what it says in words."""

    title: str
    svg: Markup
    caption: str
    keys: tuple[Key, ...] = ()


def of_scores(traced: ThresholdSweep, whole: MetricGroup | None) -> list[Shown]:
    """The pictures over p_unsafe, as far as they can be drawn."""
    shown = []
    if traced.whole:
        shown += [_roc(traced.whole, traced.by_source, whole), _precision_recall(traced.whole, traced.by_source, whole)]
    if any(part.safe or part.unsafe for part in traced.bins):
        shown += [_reliability(traced.bins, whole), _histogram(traced.bins)]
    if traced.sweep:
        shown.append(_sweep(traced.sweep))
    return shown


def of_pace(pace: Pace) -> list[Shown]:
    """Throughput and latency over the time of a run."""
    return [_throughput(pace), *([_latency(pace)] if any(bar.device_p50_s is not None for bar in pace.bars) else [])]


def _in_squares(axes: Axes) -> None:
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=ticks, yticks=ticks)


def _source_keys(by_source: dict[str, Curve]) -> tuple[Key, ...]:
    return (
        Key("--accent", "all items"),
        *(Key(f"--series-{at}", source or "(no source)") for at, source in enumerate(by_source)),
    )


def _roc(whole: Curve, by_source: dict[str, Curve], group: MetricGroup | None) -> Shown:
    with drawing("roc", "ROC curve", across="safe items called unsafe", up="unsafe items found") as picture:
        axes = picture.axes
        _in_squares(axes)
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        for colour, curve in zip(SERIES, by_source.values(), strict=False):
            axes.plot(*curve.roc(), color=colour, linewidth=1.1)
        axes.plot(*whole.roc(), color=ACCENT)
        point = _operating_point(group)
        if point:
            axes.plot([point.fp / (point.fp + point.tn)], [point.tp / (point.tp + point.fn)], "o", color=INK)
    words = f"AUROC {_value(group, 'auroc')} over all items; the dashed diagonal is a guess."
    return Shown("ROC curve", picture.svg, f"{words} The dot is the run as judged.", _source_keys(by_source))


def _precision_recall(whole: Curve, by_source: dict[str, Curve], group: MetricGroup | None) -> Shown:
    with drawing("pr", "Precision over recall", across="recall of unsafe", up="precision of unsafe") as picture:
        axes = picture.axes
        _in_squares(axes)
        base = whole.found[-1] / (whole.found[-1] + whole.accused[-1])
        axes.axhline(base, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        for colour, curve in zip(SERIES, by_source.values(), strict=False):
            axes.plot(*curve.precision_recall(), color=colour, linewidth=1.1)
        axes.plot(*whole.precision_recall(), color=ACCENT)
        point = _operating_point(group)
        if point and point.tp + point.fp:
            axes.plot([point.tp / (point.tp + point.fn)], [point.tp / (point.tp + point.fp)], "o", color=INK)
    words = f"Average precision {_value(group, 'auprc')} over all items; the dashed line, {base:.3f}, is a guess."
    return Shown("Precision and recall", picture.svg, f"{words} The dot is the run as judged.", _source_keys(by_source))


def _operating_point(group: MetricGroup | None) -> Confusion | None:
    """The run's own counts, where both classes are there."""
    if group is None:
        return None
    point = Confusion(*(int(group.value(name) or 0) for name in Confusion._fields))
    return point if point.tp + point.fn and point.fp + point.tn else None


def _value(group: MetricGroup | None, name: str) -> str:
    value = group.value(name) if group else None
    return "–" if value is None else f"{value:.4f}"


def _reliability(bins: Sequence[Bin], group: MetricGroup | None) -> Shown:
    with drawing("reliability", "Reliability diagram", across="mean p(unsafe)", up="share truly unsafe") as picture:
        axes = picture.axes
        _in_squares(axes)
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
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
    return Shown("Reliability", picture.svg, words)


def _histogram(bins: Sequence[Bin]) -> Shown:
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
    return Shown("Scores", picture.svg, "A good guard's upper bars lean right, its lower ones left.", keys)


def _sweep(sweep: Sequence[Confusion]) -> Shown:
    with drawing(
        "sweep", "Metrics over the threshold", across="called unsafe from p(unsafe)", up="all items together"
    ) as picture:
        axes = picture.axes
        _in_squares(axes)
        axes.axvline(0.5, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        for colour, (metric, _) in zip(SERIES, SWEPT, strict=False):
            axes.plot(THRESHOLDS, [_or_gap(COUNT_METRICS[metric].formula(counts)) for counts in sweep], color=colour)
    keys = tuple(Key(f"--series-{at}", words) for at, (_, words) in enumerate(SWEPT))
    words = "Over all items at once, not averaged over sources. Choose a threshold on other data than you report."
    return Shown("Threshold sweep", picture.svg, words, keys)


def _or_gap(value: float | None) -> float:
    """What matplotlib leaves out of a line."""
    return float("nan") if value is None else value


def _throughput(pace: Pace) -> Shown:
    with drawing(
        "throughput", "Throughput over time", across="seconds since the first verdict", up="items/s"
    ) as picture:
        axes = picture.axes
        axes.grid(visible=False, axis="x")
        starts = [bar.begins_s for bar in pace.bars]
        axes.bar(
            starts,
            [bar.settled / pace.bar_s for bar in pace.bars],
            width=pace.bar_s * 0.9,
            align="edge",
            color=ACCENT,
            linewidth=0,
        )
        axes.set_xlim(0, pace.bar_s * len(pace.bars))
    words = f"Items settled in stretches of {pace.bar_s:,.3g} s. They settle chunk by chunk, which makes steps."
    return Shown("Throughput", picture.svg, words)


def _latency(pace: Pace) -> Shown:
    series = (
        ("queue_p50_s", "--series-0", "queue, median"),
        ("queue_p95_s", "--series-1", "queue, 95 %"),
        ("device_p50_s", "--series-2", "device, median"),
        ("device_p95_s", "--series-3", "device, 95 %"),
    )
    with drawing("latency", "Latency over time", across="seconds since the first verdict", up="seconds") as picture:
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
    return Shown("Latency", picture.svg, "Of chunks: how long they waited in the queue, and on the device.", keys)
