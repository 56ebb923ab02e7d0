"""The page of a run: whole in one file, the same bytes each time, and no place for hostile text to act."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from infra.metrics import Judged
from producer.report.page import run_page
from producer.report.view import is_the_benchmark, published
from schemas.items import Label
from schemas.runs import InvalidRow, RunSpec
from schemas.verdicts import Outcome
from tests.support.pages import HOSTILE, benchmark_rows, evidence_of, report_of
from tests.unit.infra.metrics.build import judged
from tests.unit.infra.metrics.reference import PUBLISHED_14B

pytestmark = pytest.mark.slow

ALLOWED_TAGS = set(
    re.findall(
        r"\w+",
        """
        html head meta title style body main header footer nav section h1 h2 h3 h4 p a span small sup code
        dl dt dd div ul ol li table thead tbody tr th td figure figcaption form label select option input output
        button details summary script svg g path rect use defs clippath text
        """,
    )
)


class Read(HTMLParser):
    """Every tag and attribute of a page, its scripts, and the text between the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def rows() -> list[Judged]:
    return benchmark_rows()


@pytest.fixture(scope="module")
def page(rows: list[Judged]) -> str:
    report = report_of(rows)
    return run_page(report, evidence_of(report, rows, text="占位的文字，与真实的条目一样长。" * 20), with_text=True)


def page_of(rows: list[Judged], *, text: str = "一段文字。", with_text: bool = True, **changes: object) -> str:
    report = report_of(rows, **changes)
    return run_page(report, evidence_of(report, rows, text=text), with_text=with_text)


def test_a_page_of_the_whole_benchmark_is_one_file_below_two_megabytes(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)|url\((?!#)|@import|https?://(?!www\.w3\.org)", page)
    assert page.count('<svg class="picture"') == 7


def test_a_page_shows_the_published_digits_and_where_the_run_stands_among_all_18_models(page: str) -> None:
    text = Read(page).text
    for digits in PUBLISHED_14B.values():
        assert all(value in text for value in digits)
    ranking = re.findall(r'<tr class="(published|average|baseline)">', page[page.index('class="ranking"') :])
    assert len(ranking) == 20
    assert "0.6666" in text
    assert "in three sources: its row stands where it belongs" in text
    assert "<details><summary>Show the table" not in page


def test_other_data_than_the_benchmark_is_not_ranked_openly() -> None:
    assert "places in this table mean nothing" in page_of(
        [judged("unsafe", "unsafe", 0.9), judged("safe", "safe", 0.1)]
    )


def test_the_same_run_gives_the_same_bytes() -> None:
    rows = [judged("unsafe", "unsafe", 0.9), judged("safe", "unsafe", 0.8), judged("safe", "safe", 0.1)]

    assert page_of(rows) == page_of(rows)


def test_hostile_text_and_names_stay_text() -> None:
    rows = [
        Judged(HOSTILE, HOSTILE, HOSTILE, Label.SAFE, Outcome.SCORED, Label.UNSAFE, 0.9),
        Judged("b", HOSTILE, "x", Label.UNSAFE, Outcome.SCORED, Label.SAFE, 0.4),
        Judged("b", "", "", Label.SAFE, Outcome.DEAD, None, None),
    ]
    page = page_of(
        rows,
        text=HOSTILE,
        name=HOSTILE,
        spec=RunSpec(guard=HOSTILE, source=HOSTILE),
        fingerprint={"model": HOSTILE},
        dead_reasons={HOSTILE: 1},
        unparseable_reasons={HOSTILE: 1},
        dead_items=(HOSTILE,),
        invalid_rows=(InvalidRow(where=HOSTILE, problem=HOSTILE),),
        invalid_count=1,
    )
    read = Read(page)

    assert {tag for tag, _ in read.tags} <= ALLOWED_TAGS
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert "alert(1)" not in page[page.rindex("<script>") :]
    assert HOSTILE in read.text
    assert "49" not in read.text.replace(HOSTILE, "")[:200], "nothing evaluates what stands in a text"


def test_no_script_but_the_pages_own_may_run(page: str) -> None:
    read = Read(page)
    (policy,) = [a["content"] for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]{44}';", policy)


def test_texts_are_hidden_until_asked_for_and_left_out_on_request() -> None:
    rows = [judged("safe", "unsafe", 0.9)]
    shown, without = page_of(rows, text="某段私密的话"), page_of(rows, text="某段私密的话", with_text=False)

    assert re.search(r"<details><summary>Text</summary>(?:(?!</details>).)*某段私密的话", shown, re.DOTALL)
    assert "某段私密的话" not in without
    assert "made without texts" in without


def test_a_page_says_where_retention_has_scrubbed_the_texts() -> None:
    page = page_of([judged("safe", "unsafe", 0.9)], text="")

    assert "The texts have been scrubbed" in page
    assert "Text scrubbed." in page


def test_a_run_without_human_labels_shows_what_was_said() -> None:
    text = Read(page_of([judged(None, "safe", 0.2), judged(None, "unsafe", 0.1)])).text

    assert "nothing to be right about" in text
    assert "Accuracy" not in text


def test_losses_are_listed_and_counted_among_the_errors() -> None:
    rows = [judged("unsafe", "unsafe", 0.9), judged("safe"), judged("safe", outcome="dead")]
    text = Read(page_of(rows, dead_reasons={"too long": 1}, dead_items=("item-2",))).text

    assert "1 unparseable, 1 dead." in text
    assert "1 too long" in text
    assert "2 without a label among the wrong ones" in text


def test_answers_that_could_not_be_read_are_counted_by_reason() -> None:
    text = Read(page_of([judged("safe")], unparseable_reasons={"neither word is likely": 1_200})).text

    assert "Why answers could not be read" in text
    assert "1,200 neither word is likely" in text


def test_undefined_metrics_have_their_reason_below() -> None:
    assert "no row is truly unsafe" in Read(page_of([judged("safe", "safe", 0.1)])).text


def test_the_published_averages_are_the_means_of_their_sources() -> None:
    table = published()

    assert len(table.rows) == 18
    assert sum(row.f1_safe is not None for row in table.rows) == 17
    for row in table.rows:
        assert (row.real + row.synthetic + row.translated) / 3 == pytest.approx(row.accuracy, abs=6e-5)


def test_only_the_whole_benchmark_is_the_benchmark(rows: list[Judged]) -> None:
    assert is_the_benchmark(report_of(rows))
    assert not is_the_benchmark(report_of(rows[1:]))
