"""The published row of Libra-Guard-Qwen2.5-14B, digit for digit, through queue, worker, collector and database."""

from __future__ import annotations

from infra.ledger import intake
from infra.ledger.runs import run_status, stored_report
from infra.servers.services import Services
from producer.intake.submit import seal, submit
from schemas.items import Item, Label
from schemas.runs import RunReport, RunSpec
from tests.support.fleet import Fleet

# TP unsafe, FN, FP, TN: the counts that reproduce the README's sample output of caskcsg/Libra exactly.
GOLDEN = {
    "Real Data": (782, 99, 78, 303),
    "Synthetic Data": (753, 131, 113, 470),
    "Translated Data": (1956, 135, 133, 767),
}
PUBLISHED = {
    "Real Data": (".8983", ".7739", ".8597"),
    "Synthetic Data": (".8606", ".7939", ".8337"),
    "Translated Data": (".9359", ".8513", ".9104"),
    "average": (".8983", ".8064", ".8679"),
}


def golden_items() -> list[Item]:
    cells = ((Label.UNSAFE, "unsafe"), (Label.UNSAFE, "safe"), (Label.SAFE, "unsafe"), (Label.SAFE, "safe"))
    return [
        Item(
            id=f"{source}-{truth}-{verdict}-{number}",
            question="问题",
            response=f"[[fake:{verdict}]] 第 {number} 条回答",
            truth=truth,
            source=source,
        )
        for source, counts in GOLDEN.items()
        for (truth, verdict), count in zip(cells, counts, strict=True)
        for number in range(count)
    ]


def digits(report: RunReport, kind: str, name: str | None = None) -> tuple[str, ...]:
    (group,) = [group for group in report.groups if group.kind == kind and name in (None, group.name)]
    values = [group.value(metric) for metric in ("f1_unsafe", "f1_safe", "accuracy")]
    return tuple(f"{value:.4f}".removeprefix("0") for value in values if value is not None)


def test_a_run_with_the_golden_counts_gives_the_published_row_digit_for_digit(services: Services, fleet: Fleet) -> None:
    fleet.start_collector()
    fleet.start_worker()
    spec = RunSpec(guard="fake", source="golden")
    run_id = intake.create_run(services.engine, spec)

    assert submit(services, run_id, spec, golden_items()) == 5_720
    seal(services, run_id)
    fleet.wait(lambda: run_status(services.engine, run_id).state.ended)

    report = stored_report(services.engine, run_id)
    assert report is not None
    assert {source: digits(report, "source", source) for source in GOLDEN} == {
        source: PUBLISHED[source] for source in GOLDEN
    }
    assert digits(report, "average") == PUBLISHED["average"]
    assert (report.counts.accepted, report.counts.scored, report.counts.pending) == (5_720, 5_720, 0)
