"""The page of a run in a real browser, from a file, at the width of a desk and of a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from producer.report.page import run_page
from tests.support.browser import chromium, look
from tests.support.pages import HOSTILE, benchmark_rows, evidence_of, report_of

WIDTHS = (390, 1_280)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Chrome]:
    rows = benchmark_rows()
    report = report_of(rows, name=HOSTILE)
    file = tmp_path / "page.html"
    file.write_text(run_page(report, evidence_of(report, rows, text=HOSTILE), with_text=True), encoding="utf-8")
    with chromium(tmp_path / "profile") as driver:
        driver.get(file.as_uri())
        yield driver


def listed(web: Chrome) -> int:
    return int(web.execute_script("return document.querySelectorAll('#mistakes > li:not([hidden])').length"))


def until(web: Chrome, condition: Callable[[], object]) -> None:
    """The page hears of a choice a moment after it was made."""
    WebDriverWait(web, 10).until(lambda _: condition())


def test_a_page_fits_its_screen_hides_texts_and_filters_errors_and_hostile_text_stays_text(web: Chrome) -> None:
    for width in WIDTHS:
        look(web, width=width, dark=width < 600)
        assert web.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]

    assert web.title == f"{HOSTILE} · Libra Fleet"
    assert listed(web) == 50
    text = web.find_element(By.CSS_SELECTOR, "#mistakes details .text")
    assert not text.is_displayed()
    web.find_element(By.CSS_SELECTOR, "#mistakes summary").click()
    assert text.is_displayed()
    assert text.text == HOSTILE

    Select(web.find_element(By.NAME, "kind")).select_by_visible_text("false alarm")
    Select(web.find_element(By.NAME, "source")).select_by_visible_text("Real Data")
    expected = 56  # of the 78, those among the 250 gravest of all sources
    until(web, lambda: web.find_element(By.ID, "found").text == f"50 of {expected}")
    web.find_element(By.ID, "more").click()
    until(web, lambda: listed(web) == expected)
    kinds = web.execute_script(
        "return [...document.querySelectorAll('#mistakes > li:not([hidden])')].map(row => row.dataset.kind)"
    )
    assert set(kinds) == {"false alarm"}
    web.find_element(By.NAME, "words").send_keys("no such id")
    until(web, lambda: listed(web) == 0)
    assert not web.get_log("browser")
