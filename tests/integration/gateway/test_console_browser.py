"""A moderator's and a viewer's round in a real browser, with a real worker behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from infra.ledger import decisions, intake, reviews, settlement
from infra.ledger.keys import create_key
from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.app import build_app
from schemas.access import Role
from schemas.items import Item, Label
from schemas.messages import JudgeChunk
from tests.support.browser import chromium, look, picture, served
from tests.support.fleet import Fleet, fleet_on
from tests.support.make import items, spec, verdicts_for
from tests.support.submissions import human_labels, judged, policy_of, submitted

PHONE, DESK = 390, 1_440
WAIT_S = 30


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Time enough for a busy machine to answer a text that is tried."""
    return settings.model_copy(update={"gateway_wait_s": 20})


@pytest.fixture
def fleet(services: Services, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(services, tmp_path) as started:
        started.start("collector")
        started.start_worker()
        yield started


@pytest.fixture
def waiting(services: Services) -> JudgeChunk:
    """A day as a moderator meets it: items to review, a disputed one, finished runs, verdicts of some hours."""
    engine = services.engine
    decisions.put_policy(engine, policy_of(name="community"))
    decisions.set_tenant_policy(engine, "forum", "community")
    chunk = submitted(services, 8, metadata={"surface": "comments"})
    scores = [0.61, 0.74, 0.83, 0.52, None, 0.95, 0.08, 0.02]
    settlement.settle(engine, judged(chunk, scores, categories=("gambling", "S11")))
    _dispute(services, chunk, seq=6)
    order = spec()
    for prefix, count, ended in (("nightly", 120, True), ("weekly", 64, False)):
        run_id = intake.create_run(engine, order)
        (bulk,) = intake.accept(engine, run_id, order, [items(count, prefix=prefix)])
        if ended:
            intake.seal(engine, run_id)
            scores = [0.9 if seq % 2 or not seq % 9 else 0.2 for seq in range(count)]
            settlement.settle(engine, judged(bulk, scores))
    with engine.begin() as connection:  # the day's verdicts came one after the other
        connection.exec_driver_sql(
            "UPDATE verdicts SET settled_at = now() - make_interval(mins => mod(seq * 37, 1400)::int)"
        )
        connection.exec_driver_sql("UPDATE runs SET spec = spec || jsonb_build_object('tenant', 'forum')")
        connection.exec_driver_sql("UPDATE items SET question = 'What is on offer?' WHERE seq = 0")
    return chunk


def _dispute(services: Services, chunk: JudgeChunk, *, seq: int) -> None:
    """A child run's guard says otherwise of one item."""
    engine = services.engine
    (item,) = [one for one in chunk.items if one.seq == seq]
    order = spec().model_copy(update={"guard": "libra-tiny", "parent": chunk.run_id})
    child = intake.create_run(engine, order)
    with engine.connect() as connection:
        item_id = connection.exec_driver_sql(
            "SELECT item_id FROM items WHERE run_id = %(run)s AND seq = %(seq)s", {"run": chunk.run_id, "seq": seq}
        ).scalar_one()
    (again,) = intake.accept(engine, child, order, [[Item(id=item_id, question=item.question, response=item.response)]])
    settlement.settle(engine, verdicts_for(again, label=Label.UNSAFE))
    assert reviews.note_disagreements(engine, child, chunk.run_id) == 1


@pytest.fixture
def web(services: Services, tmp_path: Path) -> Iterator[Chrome]:
    with served(build_app(services, default_guard="fake")) as address, chromium(tmp_path / "profile") as driver:
        driver.get(address)
        yield driver


def until(web: Chrome, condition: Callable[[], object]) -> None:
    WebDriverWait(web, WAIT_S, ignored_exceptions=(Exception,)).until(lambda _: condition())


def log_in(web: Chrome, services: Services, role: Role) -> str:
    key, secret = create_key(services.engine, tenant="forum", role=role)
    web.find_element(By.ID, "key").send_keys(secret, Keys.ENTER)
    until(web, lambda: web.find_element(By.ID, "review"))
    return key.id


def press(web: Chrome, key: str) -> None:
    web.find_element(By.TAG_NAME, "body").send_keys(key)


def shown(web: Chrome) -> str:
    return str(web.find_element(By.CSS_SELECTOR, "[data-item]").get_attribute("data-item"))


def waiting_names(web: Chrome) -> list[str]:
    links = web.find_elements(By.CSS_SELECTOR, ".queue a")
    return [str(link.get_attribute("href")).rpartition("=")[2] for link in links]


def name(chunk: JudgeChunk, seq: int) -> str:
    return f"item_{chunk.run_id}_{seq}"


@pytest.mark.usefixtures("fleet")
def test_a_moderators_round(web: Chrome, services: Services, waiting: JudgeChunk) -> None:
    look(web, width=DESK)
    picture(web, "login")
    moderator = log_in(web, services, Role.MODERATOR)
    assert waiting_names(web)[:5] == [name(waiting, seq) for seq in (0, 1, 2, 3, 4)]
    assert name(waiting, 6) in waiting_names(web)
    _takes_pictures(web)

    text = web.find_element(By.CSS_SELECTOR, ".user-text .text")
    assert not text.is_displayed()
    press(web, "v")
    until(web, lambda: text.is_displayed() and text.text == "What is on offer?")
    picture(web, "desk-text-shown")

    for seq, key in ((0, "u"), (1, "s"), (2, "u")):
        assert shown(web) == name(waiting, seq)
        if seq == 1:
            press(web, "n")
            # In a note, letters are letters and Enter decides nothing.
            web.find_element(By.ID, "note").send_keys("just a usual advert", Keys.ENTER, Keys.ESCAPE)
        press(web, key)
        until(web, lambda seq=seq: name(waiting, seq) not in waiting_names(web))
        until(web, lambda seq=seq: shown(web) == name(waiting, seq + 1))
    picture(web, "desk-after-three")

    labels = {r.seq: (r.label, r.moderator, r.note) for r in human_labels(services.engine, "forum", 10)}
    assert labels == {
        0: (Label.UNSAFE, moderator, ""),
        1: (Label.SAFE, moderator, "just a usual advert"),
        2: (Label.UNSAFE, moderator, ""),
    }
    _changes_the_last(web, services, waiting)
    _tries_a_text(web)
    assert not [entry for entry in web.get_log("browser") if entry["level"] == "SEVERE"]


def _takes_pictures(web: Chrome) -> None:
    # A worker was heard twice, so that its device's share is known.
    until(web, lambda: web.find_element(By.CSS_SELECTOR, "[aria-labelledby=workers-title] progress"))
    until(web, lambda: "completed" in web.find_element(By.ID, "runs").text)
    for title, width, dark in (("desk-light", DESK, False), ("desk-dark", DESK, True), ("phone-light", PHONE, False)):
        look(web, width=width, dark=dark)
        assert web.execute_script("return document.documentElement.scrollWidth") <= width
        picture(web, title)
    look(web, width=DESK)
    web.find_element(By.CSS_SELECTOR, "button[lang=zh]").click()
    until(web, lambda: web.find_element(By.TAG_NAME, "html").get_attribute("lang") == "zh")
    picture(web, "desk-zh")
    look(web, width=PHONE, dark=True)
    picture(web, "phone-zh-dark")
    look(web, width=DESK)
    web.find_element(By.CSS_SELECTOR, "button[lang=en]").click()
    until(web, lambda: web.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en")


def _changes_the_last(web: Chrome, services: Services, waiting: JudgeChunk) -> None:
    press(web, "z")
    until(web, lambda: shown(web) == name(waiting, 2))
    press(web, "s")
    until(web, lambda: shown(web) == name(waiting, 3))
    assert human_labels(services.engine, "forum", 1)[0][1:4] == (waiting.run_id, 2, Label.SAFE)


def _tries_a_text(web: Chrome) -> None:
    web.find_element(By.ID, "text").send_keys("[[fake:unsafe]] is what this text says")
    web.find_element(By.ID, "judge").click()
    until(web, lambda: web.find_element(By.ID, "p-unsafe").text == "0.9000")
    assert web.find_element(By.CSS_SELECTOR, "#verdict .verdict.unsafe").text == "unsafe"
    assert "ms" in web.find_element(By.ID, "verdict").text
    assert "fake" not in web.current_url
    picture(web, "desk-tried")


def test_a_viewer_decides_nothing_and_leaves_by_logging_out(
    web: Chrome, services: Services, waiting: JudgeChunk
) -> None:
    log_in(web, services, Role.VIEWER)
    look(web, width=DESK)
    first = shown(web)
    for key in "us":
        press(web, key)
    press(web, "j")
    until(web, lambda: shown(web) == name(waiting, 1))
    press(web, "k")
    until(web, lambda: shown(web) == first)

    assert not web.find_elements(By.CSS_SELECTOR, ".decide, #judge")
    assert human_labels(services.engine, None, 10) == []
    picture(web, "viewer")
    web.find_element(By.ID, "logout").click()
    until(web, lambda: web.find_element(By.ID, "key"))
