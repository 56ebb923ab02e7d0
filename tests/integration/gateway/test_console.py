"""The console over HTTP: who gets in, what a form must bring, what is escaped, what the page says."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator

import pytest
import redis
from fastapi.testclient import TestClient
from httpx2 import Response

from infra.ledger import decisions, settlement, stats
from infra.ledger.keys import create_key, revoke_key
from infra.servers.services import Services
from producer.gateway.console.pages import CATALOGUE, Language
from schemas.access import Role
from schemas.fleet import Announcement
from schemas.items import Label
from schemas.messages import JudgeChunk
from tests.support.submissions import human_labels, judged, policy_of, submitted

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"


@pytest.fixture
def waiting(services: Services) -> JudgeChunk:
    """Three items to review of the tenant acme, and one that passed."""
    decisions.put_policy(services.engine, policy_of())
    decisions.set_tenant_policy(services.engine, "acme", "default")
    chunk = submitted(services, 4, tenant="acme")
    settlement.settle(services.engine, judged(chunk, [0.6, 0.7, 0.8, 0.1], categories=("gambling",)))
    return chunk


@pytest.fixture
def web(api: TestClient) -> Iterator[TestClient]:
    """A browser of sorts: it keeps cookies and does not follow redirects."""
    api.follow_redirects = False
    return api


def csrf(page: Response) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert found, page.text[:500]
    return found[1]


@pytest.fixture
def log_in(web: TestClient, services: Services) -> Callable[..., str]:
    """Logs a new key in; returns the key's id."""

    def enter(role: Role = Role.MODERATOR, tenant: str = "acme") -> str:
        key, secret = create_key(services.engine, tenant=tenant, role=role)
        web.cookies.clear()
        answer = web.post("/console/login", data={"csrf": csrf(web.get("/console/login")), "key": secret})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console")
        return key.id

    return enter


def name_of(chunk: JudgeChunk, seq: int) -> str:
    return f"item_{chunk.run_id}_{seq}"


def labels(services: Services) -> dict[int, tuple[Label, str, str]]:
    return {r.seq: (r.label, r.moderator, r.note) for r in human_labels(services.engine, None, 100)}


def test_whoever_is_not_logged_in_is_sent_to_the_login(web: TestClient) -> None:
    for path in ("/console", "/console/fleet", "/console/review", "/console?item=item_r0123456789_0"):
        answer = web.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
        assert web.get(path, headers={"X-Console-Fragment": "1"}).status_code == 401
    assert web.get("/").headers["location"] == "/console"


def test_every_page_forbids_foreign_and_inline_script_and_frames(web: TestClient, log_in: Callable[..., str]) -> None:
    log_in()
    for path in ("/console", "/console/login", "/console/review", "/console/static/console.js", "/console/nowhere"):
        headers = web.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe-inline" not in policy
        assert "default-src 'none'" in policy
        assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    page = web.get("/console")
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?! src=)|\son\w+=|\sstyle=|https?://", page.text)


def test_the_cookie_is_out_of_reach_of_scripts_and_of_plain_http_where_there_is_https(
    web: TestClient, services: Services
) -> None:
    _, secret = create_key(services.engine, tenant="acme", role=Role.VIEWER)
    for base, secure in (("http://testserver", False), ("https://testserver", True)):
        web.cookies.clear()
        web.base_url = base
        answer = web.post("/console/login", data={"csrf": csrf(web.get("/console/login")), "key": secret})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert "Path=/console" in cookie
        assert ("Secure" in cookie) == secure
        assert secret not in cookie


def test_a_login_changes_the_token_and_a_wrong_key_or_a_programs_key_gets_none(
    web: TestClient, services: Services, redis_url: str
) -> None:
    page = web.get("/console/login")
    before = web.cookies["libra_session"]
    _, secret = create_key(services.engine, tenant="acme", role=Role.SERVICE)

    for key, status in (("lk_wrong", 401), ("", 401), (secret, 403)):
        answer = web.post("/console/login", data={"csrf": csrf(page), "key": key})
        assert answer.status_code == status
        assert web.cookies["libra_session"] == before
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("*session*")) == []

    _, secret = create_key(services.engine, tenant="acme", role=Role.VIEWER)
    web.post("/console/login", data={"csrf": csrf(page), "key": secret})
    assert web.cookies["libra_session"] != before
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        (name,) = client.scan_iter("*session*")
        assert web.cookies["libra_session"] not in name
        assert 0 < client.ttl(name) <= services.settings.console_session_s


@pytest.mark.parametrize("path", ["login", "logout", "language", "decide", "try"])
def test_a_form_without_its_token_or_with_anothers_is_refused(
    web: TestClient, log_in: Callable[..., str], services: Services, waiting: JudgeChunk, path: str
) -> None:
    log_in()
    anothers = csrf(web.get("/console"))
    log_in()
    form = {"item": name_of(waiting, 0), "label": "safe", "text": "a", "language": "zh", "key": "lk"}

    for token in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": anothers}, {"csrf": "é"}):
        answer = web.post(f"/console/{path}", data={**form, **token})
        assert answer.status_code == 403
        assert "text/html" in answer.headers["content-type"]
    own = csrf(web.get("/console"))
    web.cookies.clear()
    assert web.post(f"/console/{path}", data={**form, "csrf": own}).status_code == 403
    assert labels(services) == {}


def test_a_logout_and_a_revoked_key_each_end_the_session(
    web: TestClient, log_in: Callable[..., str], services: Services
) -> None:
    log_in()
    token = web.cookies["libra_session"]
    assert web.post("/console/logout", data={"csrf": csrf(web.get("/console"))}).status_code == 303
    web.cookies.set("libra_session", token, path="/console", domain="testserver.local")
    assert web.get("/console").status_code == 303

    key_id = log_in()
    assert web.get("/console").status_code == 200
    revoke_key(services.engine, key_id)
    assert web.get("/console").headers["location"] == "/console/login"


def test_a_moderators_decision_is_a_human_label_and_the_next_item_follows(
    web: TestClient, log_in: Callable[..., str], services: Services, waiting: JudgeChunk
) -> None:
    key_id = log_in()
    page = web.get("/console")
    assert f'data-item="{name_of(waiting, 0)}"' in page.text
    form = {
        "csrf": csrf(page),
        "item": name_of(waiting, 0),
        "label": "unsafe",
        "note": " an advert ",
        "following": name_of(waiting, 1),
    }

    answer = web.post("/console/decide", data=form, headers={"X-Console-Fragment": "1"})

    assert labels(services) == {0: (Label.UNSAFE, key_id, "an advert")}
    assert f'data-item="{name_of(waiting, 1)}"' in answer.text
    assert "marked unsafe" in answer.text
    again = web.get("/console/review", params={"item": name_of(waiting, 0)}, headers={"X-Console-Fragment": "1"})
    assert "an advert" in again.text
    without_script = web.post("/console/decide", data={**form, "label": "safe"})
    assert without_script.headers["location"] == f"/console?item={name_of(waiting, 1)}"
    assert labels(services)[0][0] is Label.SAFE


def test_a_viewer_may_look_but_neither_decide_nor_submit(
    web: TestClient, log_in: Callable[..., str], services: Services, waiting: JudgeChunk
) -> None:
    log_in(Role.VIEWER)
    page = web.get("/console")
    assert "text number 0" in page.text
    assert 'action="/console/decide"' not in page.text
    assert 'action="/console/try"' not in page.text
    form = {"csrf": csrf(page), "item": name_of(waiting, 0), "label": "safe", "text": "a"}

    assert web.post("/console/decide", data=form).status_code == 403
    assert web.post("/console/try", data=form).status_code == 403
    assert labels(services) == {}


@pytest.mark.usefixtures("waiting")
def test_another_tenant_sees_and_decides_nothing_of_it_and_an_admin_everything(
    web: TestClient, log_in: Callable[..., str], services: Services, waiting: JudgeChunk
) -> None:
    log_in(tenant="other")
    page = web.get("/console", params={"item": name_of(waiting, 0)})
    assert "text number" not in page.text
    form = {"csrf": csrf(page), "item": name_of(waiting, 0), "label": "safe"}
    assert web.post("/console/decide", data=form).status_code == 404
    assert labels(services) == {}

    log_in(Role.ADMIN, tenant="ops")
    assert "text number 0" in web.get("/console").text


def test_what_people_wrote_is_text_and_never_markup(
    web: TestClient, log_in: Callable[..., str], services: Services, waiting: JudgeChunk
) -> None:
    with services.engine.begin() as connection:
        for table, columns in (
            ("items", ("question", "response")),
            ("submissions", ("custom_id",)),
            ("decisions", ("policy", "reason")),
        ):
            changes = ", ".join(f"{column} = %(attack)s" for column in columns)
            connection.exec_driver_sql(f"UPDATE {table} SET {changes}", {"attack": ATTACK})  # noqa: S608
        connection.exec_driver_sql(
            "UPDATE submissions SET metadata = jsonb_build_object('surface', %(attack)s::text)", {"attack": ATTACK}
        )
        connection.exec_driver_sql("UPDATE verdicts SET categories = '<b>x</b>,\"quoted\"'")
        connection.exec_driver_sql("UPDATE runs SET name = %(attack)s", {"attack": ATTACK})
    services.coordination.presence.announce(Announcement(id=ATTACK, kind="worker", guard=ATTACK, state=ATTACK))
    log_in(Role.ADMIN)
    page = web.get("/console")
    noted = web.post(
        "/console/decide",
        data={"csrf": csrf(page), "item": name_of(waiting, 0), "label": "safe", "note": ATTACK},
    )
    assert noted.status_code == 303

    for path in ("/console", f"/console/review?item={name_of(waiting, 0)}", "/console/fleet"):
        text = web.get(path).text
        assert "<img" not in text
        assert "alert(1)</script" not in text
        assert "<b>" not in text
        assert html.escape("<img src=x onerror=alert(2)>") in text


def test_every_turn_of_a_conversation_is_shown_and_none_of_it_is_markup(
    web: TestClient, log_in: Callable[..., str], services: Services, waiting: JudgeChunk
) -> None:
    history = json.dumps([{"role": "user", "content": "first said"}, {"role": "assistant", "content": ATTACK}])
    with services.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE items SET kind = 'messages', history = %(history)s, question = 'last asked', response = ''",
            {"history": history},
        )
    log_in(Role.ADMIN)

    text = web.get("/console", params={"item": name_of(waiting, 0)}).text

    places = [text.index(said) for said in ("first said", html.escape("<img src=x onerror=alert(2)>"), "last asked")]
    assert places == sorted(places)
    assert "<img" not in text


@pytest.mark.usefixtures("waiting")
def test_the_text_is_hidden_until_it_is_asked_for(web: TestClient, log_in: Callable[..., str]) -> None:
    log_in()
    page = web.get("/console").text
    hidden = page.index('<details class="user-text">')

    assert page.count("text number 0") == 1
    assert hidden < page.index("text number 0") < page.index("</details>")


def test_a_ledger_too_busy_for_the_chart_leaves_the_rest_of_the_fleet(
    web: TestClient, log_in: Callable[..., str], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "_HISTOGRAM_TIMEOUT_MS", 50)
    log_in()
    with services.engine.begin() as busy:
        busy.exec_driver_sql("LOCK TABLE verdicts IN ACCESS EXCLUSIVE MODE")
        answer = web.get("/console/fleet")

    assert answer.status_code == 200
    assert "the ledger is busy" in answer.text
    assert "No worker is running" in answer.text


def test_the_page_speaks_the_language_of_the_browser_or_the_chosen_one(
    web: TestClient, log_in: Callable[..., str]
) -> None:
    log_in()
    english = web.get("/console", headers={"Accept-Language": "fr, en;q=0.5, zh;q=0.2"})
    chinese = web.get("/console", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"})
    assert (english.headers["content-language"], chinese.headers["content-language"]) == ("en", "zh")
    assert "审核" in chinese.text

    web.post("/console/language", data={"csrf": csrf(english), "language": "zh"})
    assert web.get("/console", headers={"Accept-Language": "en"}).headers["content-language"] == "zh"


def test_a_text_that_is_tried_is_accepted_and_one_that_cannot_be_an_item_is_explained(
    web: TestClient, log_in: Callable[..., str]
) -> None:
    log_in()
    token = csrf(web.get("/console"))
    headers = {"X-Console-Fragment": "1"}

    late = web.post("/console/try", data={"csrf": token, "text": "hello"}, headers=headers)
    assert "No verdict within" in late.text
    assert web.post("/console/try", data={"csrf": token, "text": ""}, headers=headers).status_code == 422
    assert web.post("/console/try", data={"csrf": token, "text": "a\x00b"}, headers=headers).status_code == 422
    assert "text:" in web.post("/console/try", data={"csrf": token, "text": ""}, headers=headers).text


def test_nothing_that_a_person_writes_is_logged(
    web: TestClient, log_in: Callable[..., str], waiting: JudgeChunk, capfd: pytest.CaptureFixture[str]
) -> None:
    log_in()
    form = {"csrf": csrf(web.get("/console")), "item": name_of(waiting, 0), "label": "safe"}
    for path, written in (
        ("try", {"text": "a secret text"}),
        ("try", {"text": "a secret text\x00"}),
        ("decide", {"note": "a secret note"}),
        ("decide", {"note": "a secret note", "label": "neither"}),
        ("login", {"key": "a secret key"}),
    ):
        web.post(f"/console/{path}", data={**form, **written})

    said = capfd.readouterr()
    assert "secret" not in said.out + said.err


def test_every_string_is_there_in_every_language_with_the_same_places() -> None:
    for name, said in CATALOGUE.items():
        assert set(said) == set(Language), name
        places = [sorted(re.findall(r"{(\w+)}", text)) for text in said.values()]
        assert places[0] == places[1], name


def test_the_api_document_does_not_list_the_console(web: TestClient) -> None:
    assert not [path for path in web.get("/openapi.json").json()["paths"] if "console" in path]
