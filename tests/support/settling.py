"""Settles by hand what a gateway has accepted, as a worker and a collector would."""

from __future__ import annotations

import sqlalchemy as sa

from infra.ledger import settlement
from infra.servers.services import Services
from schemas.items import Label
from schemas.messages import VerdictChunk
from schemas.verdicts import Outcome, Timings, Verdict
from tests.support.make import FINGERPRINT


def chunks_pending(services: Services) -> list[sa.Row[tuple[str, int, int, int]]]:
    """Chunks of the ledger that have unsettled items."""
    with services.engine.connect() as connection:
        statement = (
            "SELECT run_id, chunk_no, first_seq, size FROM chunks WHERE settled < size ORDER BY run_id, chunk_no"
        )
        return list(connection.execute(sa.text(statement)))


def settle_pending(services: Services, **verdict: object) -> int:
    """Give every pending item this verdict (safe, if none is told) and tell those who wait; returns how many it was."""
    said = {"outcome": Outcome.SCORED, "label": Label.SAFE, "p_unsafe": 0.25, "label_mass": 1.0, **verdict}
    rows = chunks_pending(services)
    for row in rows:
        seqs = range(row.first_seq, row.first_seq + row.size)
        chunk = VerdictChunk(
            run_id=row.run_id,
            chunk_no=row.chunk_no,
            worker="test",
            fingerprint=FINGERPRINT,
            timings=Timings(),
            verdicts=tuple(Verdict.model_validate({"seq": seq, **said}) for seq in seqs),
        )
        settlement.settle(services.engine, chunk)
        services.coordination.notices.settled([chunk])
    return sum(row.size for row in rows)
