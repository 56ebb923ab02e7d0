"""The page of a comparison: several runs on one leaderboard, each beside the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from producer.report import view
from producer.report.leaderboard import COLUMNS, Contest, Ranking
from producer.report.page import assembled
from producer.report.published import is_the_benchmark, published

_CHARS = 400

Texts = Mapping[int, tuple[str, str]]
"""Question and response by item number."""


def board_page(standings: Sequence[Ranking], contests: Sequence[Contest], texts: Mapping[str, Texts]) -> str:
    """The page of runs, best first; `texts` of the examples by the id of the second run, none where there are none."""
    reports = [standing.report for standing in standings]
    return assembled(
        "compare.html",
        standings=standings,
        columns=COLUMNS,
        contests=contests,
        texts={
            run: {seq: tuple(view.cut(text, _CHARS) for text in pair) for seq, pair in found.items()}
            for run, found in texts.items()
        },
        published=published(),
        ranked=view.ranked([report for report in reports if is_the_benchmark(report)]),
        comparable=any(map(is_the_benchmark, reports)),
        widths=[max(0.0, 100 * standing.accuracy) for standing in standings],
    )
