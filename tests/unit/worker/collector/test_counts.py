"""What a collector counts of a settlement."""

from __future__ import annotations

from infra.coordination import counters as telemetry
from infra.coordination.counters import SUM, Tally, read_counts
from infra.ledger.settlement import Settled
from schemas.items import Label
from schemas.messages import VerdictChunk
from schemas.verdicts import Outcome, Spent, Timings, Verdict
from worker.collector.counts import count_settled

VERDICTS = tuple(
    Verdict(seq=seq, outcome=Outcome.SCORED, label=Label.SAFE, p_unsafe=0.1, label_mass=1.0) for seq in range(10)
)
CHUNK = VerdictChunk(
    run_id="r",
    chunk_no=0,
    worker="w",
    fingerprint=None,
    timings=Timings(queue_s=2.0, render_s=0.0, device_s=700.0),
    verdicts=VERDICTS,
    spent=Spent(device="d", device_s=0.1, prompt_tokens=120, new_tokens=0),
)


def _counted(chunk: VerdictChunk, changed: Settled) -> dict[tuple[str, ...], float]:
    tally = Tally()
    count_settled(tally, chunk, changed)
    fields = {field: repr(count) for field, count in tally.fields().items()}
    return {(metric.name, *labels): count for metric, labels, count in read_counts(fields)}


def test_a_settlement_counts_by_what_was_new_and_the_rest_as_duplicates() -> None:
    changed = Settled(7, False, "g", "live", scored=5, unsafe=2, unparseable=1, dead=1, cached=3)
    last = str(len(telemetry.STAGE.buckets))

    assert _counted(CHUNK, changed) == {
        ("libra_items_settled_total", "g", "live", "scored", "safe"): 3,
        ("libra_items_settled_total", "g", "live", "scored", "unsafe"): 2,
        ("libra_items_settled_total", "g", "live", "unparseable", "none"): 1,
        ("libra_items_settled_total", "g", "live", "dead", "none"): 1,
        ("libra_items_cached_total", "g", "live"): 3,
        ("libra_duplicates_suppressed_total", "g", "live"): 3,
        ("libra_tokens_spent_total", "g", "live", "prompt"): 120,
        ("libra_stage_seconds", "g", "live", "queue", "7"): 1,
        ("libra_stage_seconds", "g", "live", "queue", SUM): 2.0,
        ("libra_stage_seconds", "g", "live", "render", "0"): 1,
        ("libra_stage_seconds", "g", "live", "render", SUM): 0.0,
        ("libra_stage_seconds", "g", "live", "device", last): 1,
        ("libra_stage_seconds", "g", "live", "device", SUM): 700.0,
    }


def test_a_copy_that_changed_nothing_counts_as_duplicates_alone() -> None:
    changed = Settled(0, False, "g", "bulk")

    assert _counted(CHUNK, changed) == {("libra_duplicates_suppressed_total", "g", "bulk"): 10}
