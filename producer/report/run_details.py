"""What a page shows beside a run's report, gathered from the ledger in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from infra.ledger import stats
from infra.ledger.items import judged_rows
from infra.ledger.stats import Mistakes, Pace, Volume, WorkerShare
from infra.metrics.curves import ThresholdSweep, trace
from schemas.runs import RunReport

LISTED_PER_KIND: Final = 250
_CHUNKS_PER_BAR: Final = 2
"""So that a bar of throughput shows more than whether a chunk happened to end in it."""
_BARS: Final = (6, 60)
MAX_SOURCES: Final = 6
"""Sources with a curve of their own: more would be a tangle."""


@dataclass(frozen=True)
class RunDetails:
    """The run behind the numbers."""

    traced: ThresholdSweep
    mistakes: Mistakes
    pace: Pace | None
    workers: list[WorkerShare]
    volume: Volume


def gather(engine: sa.Engine, report: RunReport) -> RunDetails:
    """Read what the page of a run needs; one pass over its rows, and a few sums."""
    workers = stats.workers(engine, report.run_id)
    bars = sum(share.chunks for share in workers) // _CHUNKS_PER_BAR
    return RunDetails(
        traced=trace(judged_rows(engine, report.run_id), largest_sources(report)),
        mistakes=stats.mistakes(engine, report.run_id, limit=LISTED_PER_KIND),
        pace=stats.pace(engine, report.run_id, bars=min(max(bars, _BARS[0]), _BARS[1])),
        workers=workers,
        volume=stats.volume(engine, report.run_id),
    )


def largest_sources(report: RunReport) -> list[str]:
    """The sources that get a curve of their own, in the report's order; none where there is only one."""
    sizes = {g.name: m.n for g in report.groups if g.kind == "source" and (m := g.metric("accuracy"))}
    if len(sizes) < 2:
        return []
    chosen = sorted(sizes, key=lambda name: -sizes[name])[:MAX_SOURCES]
    return [name for name in sizes if name in chosen]
