"""What holds for every request: ids, limits, health, metrics."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.app import build_app
from schemas.fleet import Announcement


def test_every_answer_has_a_request_id_and_a_sober_one_of_the_caller_is_kept(api: TestClient) -> None:
    assert api.get("/healthz", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    answer = api.get("/nowhere", headers={"X-Request-ID": "a b\tc"})

    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/healthz", 405)])
def test_what_is_not_there_is_a_problem_document(api: TestClient, method: str, path: str, status: int) -> None:
    answer = api.request(method, path)

    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].startswith("urn:libra-fleet:problem:")


def test_readiness_names_the_servers_and_who_judges(api: TestClient, services: Services) -> None:
    services.coordination.presence.announce(Announcement(id="w", kind="worker", state="ready", guard="fake"))
    services.coordination.presence.announce(Announcement(id="x", kind="worker", state="loading", guard="fake"))

    assert api.get("/readyz").json() == {
        "status": "ok",
        "ledger": "ok",
        "broker": "ok",
        "guard": "fake",
        "guard_served": True,
        "workers": {"fake": 1},
        "collectors": 0,
    }


def test_a_broker_that_is_away_makes_the_gateway_unready(settings: Settings, ledger_url: str) -> None:
    services = Services(settings, "redis://127.0.0.1:1/0", ledger_url, embedded=True)
    answer = TestClient(build_app(services)).get("/readyz")

    assert answer.status_code == 503
    assert (answer.json()["ledger"], answer.json()["broker"]) == ("ok", "away")
    services.engine.dispose()


def test_a_gateway_that_never_reached_its_broker_has_metrics_that_say_so(settings: Settings, ledger_url: str) -> None:
    services = Services(settings, "redis://127.0.0.1:1/0", ledger_url, embedded=True)
    answer = TestClient(build_app(services)).get("/metrics")

    assert answer.status_code == 200
    assert 'libra_server_up{server="broker"} 0.0' in answer.text
    assert 'libra_server_up{server="ledger"} 1.0' in answer.text
    services.engine.dispose()


def test_metrics_count_requests_by_route_and_never_by_path(api: TestClient) -> None:
    api.get("/healthz")
    api.get("/user-chosen")
    text = api.get("/metrics").text

    assert 'libra_gateway_requests_total{method="GET",route="/healthz",status="200"} 1.0' in text
    assert 'libra_queue_chunks{guard="fake",lane="live"} 0.0' in text
    assert 'libra_items_pending{guard="fake",lane="bulk"} 0.0' in text
    assert 'libra_server_up{server="ledger"} 1.0' in text
    assert "user-chosen" not in text


def test_pages_of_other_origins_may_not_call_unless_they_are_named(services: Services) -> None:
    named = services.settings.model_copy(update={"gateway_cors_origins": "https://a.example"})
    closed = TestClient(build_app(services)).get("/healthz", headers={"Origin": "https://a.example"})
    services.settings = named
    opened = TestClient(build_app(services)).get("/healthz", headers={"Origin": "https://a.example"})

    assert "access-control-allow-origin" not in closed.headers
    assert opened.headers["access-control-allow-origin"] == "https://a.example"
