"""The report of a cascade: metrics of its final verdicts, each stage's share, and what that saved and cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from infra.errors import UsageError
from infra.ledger.items import both_settled, judged_rows
from infra.ledger.runs import RunStatus, stored_report
from infra.ledger.stats import device_seconds, ends_of, share_of
from infra.metrics import measure
from infra.metrics.paired import Pairs, count_pairs, mcnemar
from schemas.runs import Against, CascadeShares, Interval, RunReport, Throughput

_Z95: Final = 1.959964


def cascade_report(engine: sa.Engine, stages: Sequence[RunStatus], *, against: RunStatus | None = None) -> RunReport:
    """One report over all stages of a cascade that have ended, under the name of the first.

    Raises:
        UsageError: a stage has not ended, or the run to compare with holds none of the items.
    """
    first, run_ids = stages[0], [stage.id for stage in stages]
    reports = [report for run_id in run_ids if (report := stored_report(engine, run_id)) is not None]
    if len(reports) <= len(first.spec.stages):
        raise UsageError(f"run {first.name} is a cascade: its report comes when its last stage has ended")
    ends = ends_of(engine, run_ids)
    shares = [share_of(engine, stage, ends.by_stage.get(at, 0)) for at, stage in enumerate(stages, start=1)]
    rate = ends.counts.settled / ends.seconds if ends.seconds > 0 else None
    last, last_share = reports[-1], shares[-1]
    alone = last_share.device_s / last_share.judged * shares[0].judged if last_share.judged else None
    return reports[0].model_copy(
        update={
            "state": last.state,
            "counts": ends.counts,
            "fingerprint": {},
            "groups": measure(judged_rows(engine, *run_ids)),
            "throughput": Throughput(seconds=ends.seconds, items_per_s=rate),
            "dead_reasons": last.dead_reasons if ends.counts.dead else {},
            "unparseable_reasons": last.unparseable_reasons if ends.counts.unparseable else {},
            "dead_items": last.dead_items if ends.counts.dead else (),
            "cached": sum(report.cached for report in reports),
            "receipt": "",  # each stage has its own
            "cascade": CascadeShares(
                stages=tuple(shares),
                device_s_saved=None if alone is None else alone - sum(share.device_s for share in shares),
                against=against and compared(engine, run_ids, against),
            ),
        }
    )


def compared(engine: sa.Engine, run_ids: Sequence[str], other: RunStatus) -> Against:
    """A cascade compared with a run over the same items."""
    rows = [row for row in both_settled(engine, run_ids[0], other.id, later_stages=run_ids[1:]) if row.same_text]
    if not rows:
        raise UsageError(f"run {other.name} holds none of the cascade's items")
    pairs = count_pairs(("", row.truth, *row.labels) for row in rows if row.truth is not None)
    known = pairs.get("", Counter())
    labelled = known.total()
    return Against(
        run_id=other.id,
        guard=other.spec.guard,
        items=len(rows),
        agreement=sum(row.labels[0] == row.labels[1] for row in rows) / len(rows),
        device_s=device_seconds(engine, other.id),
        accuracy=sum(n for cell, n in known.items() if cell.second_right) / labelled if labelled else None,
        cascade_accuracy=sum(n for cell, n in known.items() if cell.first_right) / labelled if labelled else None,
        accuracy_lost=accuracy_lost(pairs) if labelled else None,
    )


def accuracy_lost(pairs: Pairs) -> Interval:
    """The accuracy that the first side lacks compared with the second: the normal 95 % interval of the mean."""
    test, items = mcnemar(pairs), sum(map(sum, (cells.values() for cells in pairs.values())))
    mean = (test.second_only - test.first_only) / items
    disagreements = test.second_only + test.first_only
    variance = (disagreements * items - (test.second_only - test.first_only) ** 2) / items**2
    half = _Z95 * math.sqrt(variance / items)
    return Interval(low=mean - half, high=mean + half)
