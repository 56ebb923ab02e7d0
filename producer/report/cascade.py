"""The report of a cascade: the metrics of its final verdicts, what each stage settled, and what that saved and cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

import sqlalchemy as sa

from infra.errors import UsageError
from infra.ledger import cascades, reading
from infra.ledger.cascades import PairedLabel
from infra.ledger.reading import RunStatus
from infra.metrics import measure
from schemas.runs import Against, CascadeShares, Interval, RunReport, StageShare, Throughput

_Z95: Final = 1.959964


def cascade_report(engine: sa.Engine, stages: Sequence[RunStatus], *, against: RunStatus | None = None) -> RunReport:
    """One report over all stages of a cascade that have ended, under the name of the first.

    Raises:
        UsageError: a stage has not ended, or the run to compare with holds none of the items.
    """
    first, run_ids = stages[0], [stage.id for stage in stages]
    reports = [report for run_id in run_ids if (report := reading.stored_report(engine, run_id)) is not None]
    if len(reports) <= len(first.spec.stages):
        raise UsageError(f"run {first.name} is a cascade: its report comes when its last stage has ended")
    ends = cascades.ends_of(engine, run_ids)
    shares = [cascades.share_of(engine, stage, ends.by_stage.get(at, 0)) for at, stage in enumerate(stages, start=1)]
    rate = ends.counts.settled / ends.seconds if ends.seconds > 0 else None
    last = reports[-1]
    return reports[0].model_copy(
        update={
            "state": last.state,
            "counts": ends.counts,
            "fingerprint": {},
            "groups": measure(cascades.final_rows(engine, run_ids), in_score_order=True),
            "throughput": Throughput(seconds=ends.seconds, items_per_s=rate),
            "dead_reasons": last.dead_reasons if ends.counts.dead else {},
            "dead_items": last.dead_items if ends.counts.dead else (),
            "cached": sum(report.cached for report in reports),
            "receipt": "",  # each stage has its own
            "cascade": CascadeShares(
                stages=tuple(shares),
                device_s_saved=_saved(shares),
                against=against and compared(engine, run_ids, against),
            ),
        }
    )


def _saved(shares: Sequence[StageShare]) -> float | None:
    last = shares[-1]
    if not last.judged:
        return None
    return last.device_s / last.judged * shares[0].judged - sum(share.device_s for share in shares)


def compared(engine: sa.Engine, run_ids: Sequence[str], other: RunStatus) -> Against:
    """A cascade beside a run over the same items.

    Raises:
        UsageError: the run holds none of the items.
    """
    pairs = cascades.paired_labels(engine, run_ids, other.id)
    if not pairs:
        raise UsageError(f"run {other.name} holds none of the cascade's items")
    known = [pair for pair in pairs if pair.truth is not None]
    return Against(
        run_id=other.id,
        guard=other.spec.guard,
        items=len(pairs),
        agreement=sum(pair.label == pair.other for pair in pairs) / len(pairs),
        device_s=cascades.device_seconds(engine, other.id),
        accuracy=_share(pair.other == pair.truth for pair in known),
        cascade_accuracy=_share(pair.label == pair.truth for pair in known),
        accuracy_lost=lost(known) if known else None,
    )


def _share(holds: Iterable[bool]) -> float | None:
    found = list(holds)
    return sum(found) / len(found) if found else None


def lost(known: Sequence[PairedLabel]) -> Interval:
    """How much less accurate a cascade is than the other run, item by item: the normal 95 % interval of the mean."""
    losses = [(pair.other == pair.truth) - (pair.label == pair.truth) for pair in known]
    mean = statistics.fmean(losses)
    half = _Z95 * math.sqrt(statistics.pvariance(losses) / len(losses))
    return Interval(low=mean - half, high=mean + half)
