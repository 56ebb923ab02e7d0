"""A run's report: metrics, counts, speed and provenance, read from the ledger in short transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import sqlalchemy as sa

from infra.ledger.audit import Receipt
from infra.ledger.items import judged_from, outcome_rows
from infra.ledger.runs import fingerprint_body, invalid_rows, run_status
from infra.ledger.stats import (
    cached_count,
    dead_items,
    dead_reasons,
    kind_counts,
    run_cost,
    throughput,
    unparseable_reasons,
)
from infra.metrics import Judged, measure
from schemas.runs import RunReport, RunState

_CHECK_EVERY_ROWS: Final = 4_096


def build_report(
    engine: sa.Engine, run_id: str, *, check: Callable[[], None] = lambda: None, without_groups: str = ""
) -> RunReport:
    """The report of a run whose items have all settled.

    Args:
        engine: The ledger.
        run_id: The run.
        check: Called every few thousand rows; what it raises ends the work.
        without_groups: Why no metrics are computed; empty: they are.
    """
    status = run_status(engine, run_id)
    if status.cancelled:
        without_groups = without_groups or "the run was cancelled"
    cost = run_cost(engine, run_id)
    receipt = Receipt()

    def rows() -> Iterator[Judged]:
        for at, row in enumerate(outcome_rows(engine, run_id)):
            if at % _CHECK_EVERY_ROWS == 0:
                check()
            receipt.add(row)
            yield judged_from(row)

    groups = () if without_groups else measure(rows())
    if without_groups:
        for _ in rows():
            pass  # for the receipt
    check()
    return RunReport(
        run_id=status.id,
        name=status.name,
        state=RunState.CANCELLED if status.cancelled else RunState.COMPLETE,
        spec=status.spec.model_copy(update={"examples": ()}),  # texts; their source and digest stay
        counts=status.counts,
        fingerprint=fingerprint_body(engine, status.fingerprint),
        groups=groups,
        without_groups=without_groups,
        throughput=throughput(engine, status),
        dead_reasons=dead_reasons(engine, run_id),
        unparseable_reasons=unparseable_reasons(engine, run_id) if status.counts.unparseable else {},
        dead_items=dead_items(engine, run_id),
        cached=cached_count(engine, run_id),
        kinds=kind_counts(engine, run_id),
        cost=cost if cost.measured else None,
        invalid_rows=invalid_rows(engine, run_id),
        invalid_count=status.invalid_count,
        receipt=receipt.hexdigest(),
        created_at=status.created_at.isoformat(),
    )
