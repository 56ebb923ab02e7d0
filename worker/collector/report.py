"""A finished run's report, from the ledger's rows."""

from __future__ import annotations

import sqlalchemy as sa

from infra.ledger import audit
from infra.ledger.items import judged_rows
from infra.ledger.runs import fingerprint_body, invalid_rows, run_status
from infra.ledger.stats import cached_count, dead_items, dead_reasons, run_cost, throughput
from infra.metrics import measure
from schemas.runs import RunReport, RunState


def build_report(engine: sa.Engine, run_id: str) -> RunReport:
    """Metrics, counts, speed and provenance of a run whose items have all settled."""
    status = run_status(engine, run_id)
    cost = run_cost(engine, run_id)
    return RunReport(
        run_id=status.id,
        name=status.name,
        state=RunState.CANCELLED if status.cancelled else RunState.COMPLETE,
        spec=status.spec.model_copy(update={"examples": ()}),  # texts; their source and digest stay
        counts=status.counts,
        fingerprint=fingerprint_body(engine, status.fingerprint),
        groups=measure(judged_rows(engine, run_id), in_score_order=True),
        throughput=throughput(engine, status),
        dead_reasons=dead_reasons(engine, run_id),
        dead_items=dead_items(engine, run_id),
        cached=cached_count(engine, run_id),
        cost=cost if cost.measured else None,
        invalid_rows=invalid_rows(engine, run_id),
        invalid_count=status.invalid_count,
        receipt=audit.receipt(engine, run_id),
        created_at=status.created_at.isoformat(),
    )
