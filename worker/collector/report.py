"""A finished run's report, from the ledger's rows."""

from __future__ import annotations

import sqlalchemy as sa

from infra.ledger import audit, costs, reading, settlement
from infra.metrics import measure
from schemas.runs import RunReport, RunState


def build_report(engine: sa.Engine, run_id: str) -> RunReport:
    """Metrics, counts, speed and provenance of a run whose items have all settled."""
    status = reading.run_status(engine, run_id)
    cost = costs.run_cost(engine, run_id)
    return RunReport(
        run_id=status.id,
        name=status.name,
        state=RunState.CANCELLED if status.cancelled else RunState.COMPLETE,
        spec=status.spec.model_copy(update={"examples": ()}),  # texts; their source and digest stay
        counts=status.counts,
        fingerprint=reading.fingerprint_body(engine, status.fingerprint),
        groups=measure(settlement.judged_rows(engine, run_id), in_score_order=True),
        throughput=reading.throughput(engine, status),
        dead_reasons=reading.dead_reasons(engine, run_id),
        dead_items=reading.dead_items(engine, run_id),
        cached=reading.cached_count(engine, run_id),
        cost=cost if cost.measured else None,
        invalid_rows=reading.invalid_rows(engine, run_id),
        invalid_count=status.invalid_count,
        receipt=audit.receipt(engine, run_id),
        created_at=status.created_at.isoformat(),
    )
