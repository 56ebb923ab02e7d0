"""A judged run in memory, as the page of a run is made of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from infra.ledger.stats import Bar, Kind, Mistake, Mistakes, Pace, Volume, WorkerShare
from infra.metrics import Judged, measure
from infra.metrics.curves import trace
from producer.report.page import RunDetails, largest_sources
from schemas.items import Label
from schemas.runs import RunCounts, RunReport, RunSpec, RunState, Throughput
from schemas.taxonomy import SCENARIOS
from schemas.verdicts import Outcome
from tests.unit.infra.metrics.reference import LIBRA_14B

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}$\\frac{1}{0}$\u202e"


def benchmark_rows(seed: int = 7) -> list[Judged]:
    """Rows of the benchmark's size, sources, scenarios and golden counts, with scores that fit their labels."""
    rng = random.Random(seed)
    rows = []
    pairs = (
        (Label.UNSAFE, Label.UNSAFE),
        (Label.UNSAFE, Label.SAFE),
        (Label.SAFE, Label.UNSAFE),
        (Label.SAFE, Label.SAFE),
    )
    for source, counts in LIBRA_14B.items():
        for (truth, label), count in zip(pairs, counts, strict=True):
            for _ in range(count):
                scenario = rng.choice(SCENARIOS)
                subcategory = rng.choice(scenario.subcategories).name_zh
                p_unsafe = rng.betavariate(4, 1) / 2 + 0.5 if label is Label.UNSAFE else rng.betavariate(1, 4) / 2
                rows.append(Judged(source, scenario.name_zh, subcategory, truth, Outcome.SCORED, label, p_unsafe))
    return sorted(rows, key=lambda row: -(row.p_unsafe or 0))


def report_of(rows: Sequence[Judged], **changes: object) -> RunReport:
    """The report of such rows, highest score first."""
    ends = {end: sum(row.outcome is end for row in rows) for end in Outcome}
    facts: dict[str, object] = {
        "run_id": "r1234567890",
        "name": "nightly",
        "state": RunState.COMPLETE,
        "spec": RunSpec(guard="libra-guard-qwen2.5-14b-instruct", source="caskcsg/Libra-Test"),
        "counts": RunCounts(
            accepted=len(rows),
            settled=len(rows),
            scored=ends[Outcome.SCORED],
            unparseable=ends[Outcome.UNPARSEABLE],
            dead=ends[Outcome.DEAD],
            pending=0,
        ),
        "fingerprint": {"digest": "a1b2c3d4e5f60718", "model": "14b", "revision": "1", "dtype": "bfloat16"},
        "groups": measure(rows, resamples=60),
        "throughput": Throughput(
            seconds=101.5, items_per_s=56.3, queue_p50_s=20.1, queue_p95_s=50.3, device_p50_s=1.1, device_p95_s=1.9
        ),
        "receipt": "blake2b:00",
        "created_at": "2026-11-24T12:00:00+00:00",
    }
    return RunReport(**(facts | changes))  # type: ignore[arg-type]


def evidence_of(report: RunReport, rows: Sequence[Judged], *, text: str = "一段文字。", most: int = 250) -> RunDetails:
    """What the ledger would say of it; every item's text is `text`, empty where it was scrubbed."""
    kinds: dict[Kind, list[Mistake]] = {kind: [] for kind in Kind}
    for number, row in enumerate(rows):
        if row.outcome is Outcome.SCORED and row.label is row.truth:
            continue
        wrong = Kind.MISSED if row.truth is Label.UNSAFE else Kind.FALSE_ALARM
        kind = wrong if row.outcome is Outcome.SCORED else Kind(row.outcome.value)
        kinds[kind].append(
            Mistake(
                kind=kind,
                item_id=f"item-{number}",
                source=row.source,
                category=row.category,
                subcategory=row.subcategory,
                truth=row.truth,
                p_unsafe=row.p_unsafe,
                reason=None if row.outcome is Outcome.SCORED else "no label in the answer",
                question=text,
                response=text,
                raw=None,
            )
        )
    kept = len(rows) if text else 0
    bars = [Bar(place * 1.7, 90 + place % 7, 20 - place / 4, 40 - place / 2, 1.0, 1.9) for place in range(60)]
    return RunDetails(
        traced=trace(rows, largest_sources(report)),
        mistakes=Mistakes(
            {kind: len(found) for kind, found in kinds.items() if found},
            [one for found in kinds.values() for one in found[:most]],
        ),
        pace=Pace(1.7, bars),
        workers=[WorkerShare("gpu-1-77-0", 90, len(rows))],
        volume=Volume(1_773_200, len(rows), len(rows), kept),
    )
