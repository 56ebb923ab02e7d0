"""How long a run's metrics take, intervals included, in seconds of one core."""

from __future__ import annotations

import time
from collections.abc import Iterator

from infra.metrics import measure
from tests.benchmarks.kit.figures import Figure
from tests.unit.infra.metrics.build import stream


def run(*, quick: bool) -> Iterator[Figure]:
    """The size of Libra Bench, and a million rows."""
    for rows, most_s in ((5_720, 1), (200_000, 2) if quick else (1_000_000, 10)):
        judged = list(stream(rows))
        started = time.process_time()
        measure(judged)
        taken_s = time.process_time() - started
        yield Figure("metrics_speed", f"metrics of {rows:,} rows", taken_s, "core-s", at_most=most_s)
