"""Two runs side by side: only what both judged is compared, and it is said how much."""

from __future__ import annotations

import re

from infra.ledger.items import PairedVerdict
from infra.ledger.stats import Volume
from producer.report.comparison import EXAMPLES, Comparison, Pairing, Ranking, by_accuracy, to_markdown
from producer.report.page import board_page
from schemas.items import Label
from schemas.runs import Cost, RunReport
from schemas.verdicts import Outcome
from tests.support.pages import HOSTILE, report_of
from tests.unit.infra.metrics.build import judged

SAFE, UNSAFE = Label.SAFE, Label.UNSAFE


def both(
    seq: int,
    labels: tuple[Label | None, Label | None],
    *,
    truth: Label | None = UNSAFE,
    scores: tuple[float | None, float | None] = (0.9, 0.2),
    same_text: bool = True,
    dead: bool = False,
    name: str = "",
) -> PairedVerdict:
    ends = (Outcome.SCORED, Outcome.DEAD) if dead else (Outcome.SCORED, Outcome.SCORED)
    return PairedVerdict(seq, name or f"i{seq}", name or "s", name, truth, same_text, ends, labels, scores)


def reports(*names: str) -> list[RunReport]:
    rows = [judged("unsafe", "unsafe", 0.9), judged("safe", "safe", 0.1)]
    return [report_of(rows, run_id=f"r{at}", name=name) for at, name in enumerate(names)]


def test_what_died_or_has_another_text_is_left_out_and_counted() -> None:
    found = Comparison.of(
        [
            both(1, (UNSAFE, SAFE)),
            both(2, (UNSAFE, UNSAFE)),
            both(3, (SAFE, None), dead=True),
            both(4, (SAFE, SAFE), same_text=False),
        ]
    )

    assert (found.compared, found.alike, found.dead, found.other_text) == (2, 1, 1, 1)
    assert found.test is not None
    assert (found.test.first_only, found.test.second_only) == (1, 0)
    said = Pairing(*reports("a", "b"), found).coverage_said
    assert (
        said
        == "2 judgements compared, of 2 and 2; left out: 1 dead in one of them, 1 with another text under the same id"
    )


def test_without_human_labels_agreement_is_all_there_is() -> None:
    found = Comparison.of([both(1, (UNSAFE, SAFE), truth=None)])

    assert (found.compared, found.alike, found.test, found.differences) == (1, 0, None, ())


def test_the_examples_are_the_widest_gaps() -> None:
    gaps = [both(seq, (UNSAFE, SAFE), scores=(1.0, seq / 1_000)) for seq in range(2 * EXAMPLES)]
    unread = both(999, (UNSAFE, None), scores=(0.9, None))

    found = Comparison.of([*gaps, unread])

    assert [row.seq for row in found.examples[:3]] == [0, 999, 1]
    assert len(found.examples) == EXAMPLES


def test_markdown_and_page_keep_hostile_names_as_text() -> None:
    first, second = reports(HOSTILE, "b|c")
    pairing = Pairing(first, second, Comparison.of([both(1, (UNSAFE, SAFE), name=HOSTILE)]))
    board = by_accuracy([Ranking(report, Volume(600, 2, 2, 2)) for report in (first, second)])

    markdown = to_markdown(board, [pairing])
    page = board_page(board, [pairing], {second.run_id: {1: (HOSTILE, HOSTILE)}})

    assert "b\\|c" in markdown
    assert not re.search(r"(?<!\\)<", markdown)
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert page == board_page(board, [pairing], {second.run_id: {1: (HOSTILE, HOSTILE)}})


def test_a_single_run_has_a_page_as_well() -> None:
    (report,) = reports("a")
    page = board_page([Ranking(report, Volume(600, 2, 2, 2))], [], {})

    assert "1 run compared" in page
    assert "is compared with" not in page


def test_a_run_costs_the_seconds_its_devices_were_busy_as_far_as_they_were_measured() -> None:
    (report,) = reports("a")
    volume = Volume(600, 2, 2, 2)
    cost = Cost(verdicts=2, measured=2, device_s=0.5, prompt_tokens=600)

    assert Ranking(report.model_copy(update={"cost": cost}), volume).device_s_per_1000 == 250
    assert Ranking(report, volume).device_s_per_1000 is None
    assert Ranking(report, volume).tokens_per_item == 300
