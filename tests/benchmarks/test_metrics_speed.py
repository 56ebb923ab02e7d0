"""How long metrics take, in seconds of one core. Run by `make bench` only."""

import time

import pytest

from infra.metrics import measure
from tests.unit.infra.metrics.build import stream


@pytest.mark.bench
@pytest.mark.parametrize(("rows", "limit_s"), [(5_720, 1), (1_000_000, 10)])
def test_metrics_with_intervals_are_in_time(rows: int, limit_s: float) -> None:
    run = list(stream(rows))
    started = time.process_time()

    measure(run)

    taken = time.process_time() - started
    print(f"{rows:,} rows: {taken:.2f} s")
    assert taken < limit_s
