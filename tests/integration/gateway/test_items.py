"""Items, the feed of verdicts, idempotency keys, admission: against a ledger that the test settles by hand."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from infra.ledger import decisions, feed, settlement
from infra.ledger.intake import IdempotencyKey, find_made, forget_old_keys, make_once
from infra.ledger.runs import run_status
from infra.process import wait_until
from infra.servers.services import Services
from producer.gateway.app import build_app
from schemas.fleet import Announcement
from schemas.verdicts import Outcome
from tests.integration.gateway.conftest import POLICY
from tests.support.settling import chunks_pending, settle_pending


def submit(api: TestClient, headers: dict[str, str], *items: dict[str, Any], **more: str) -> Any:
    answer = api.post("/v1/items", headers={**headers, **more}, json={"items": list(items)})
    assert answer.status_code == 202, answer.text
    return answer.json()


def accepted(services: Services) -> int:
    with services.engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT count(*) FROM items")) or 0)


def test_an_item_is_in_the_ledger_once_it_is_accepted_and_has_its_verdict_once_settled(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    said = {"custom_id": "c-1", "policy": POLICY, "callback_url": "https://a.example/x", "metadata": {"k": "v"}}
    answer = submit(api, service, {"question": "q", "response": "r", **said}, {"text": "t"})
    first, second = (f"/v1/items/{one['id']}" for one in answer["data"])
    with services.engine.connect() as connection:
        row = connection.execute(sa.text("SELECT * FROM submissions WHERE custom_id = 'c-1'")).mappings().one()
    assert {**said, "tenant": "acme"}.items() <= dict(row).items()
    assert api.get(first, headers=service).json()["status"] == "pending"

    settle_pending(services, outcome=Outcome.DEAD, label=None, p_unsafe=None, reason="too hard")

    item = api.get(first, headers=service).json()
    assert (item["custom_id"], item["metadata"], item["policy"]) == ("c-1", {"k": "v"}, POLICY)
    assert (item["verdict"]["outcome"], item["verdict"]["reason"]) == ("dead", "too hard")
    assert item["verdict"]["p_unsafe"] is None
    assert api.get(second, headers=service).json()["status"] == "settled"


def test_the_feed_gives_everything_once_and_any_page_again(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    ids = set()
    for count in (1, 2, 4):
        ids |= {one["id"] for one in submit(api, service, *[{"text": "t"}] * count)["data"]}
        settle_pending(services)
    pages, cursor, has_more = [], "0", True
    while has_more:
        page = api.get(f"/v1/verdicts?limit=3&cursor={cursor}", headers=service).json()
        pages.append((cursor, page))
        cursor, has_more = page["next_cursor"], page["has_more"]

    seen = [item["id"] for _, page in pages for item in page["data"]]
    assert sorted(seen) == sorted(ids)
    assert all(api.get(f"/v1/verdicts?limit=3&cursor={at}", headers=service).json() == page for at, page in pages)
    assert api.get(f"/v1/verdicts?cursor={cursor}", headers=service).json() == {
        "object": "list",
        "data": [],
        "next_cursor": cursor,
        "has_more": False,
    }


def test_of_two_settlements_at_once_none_is_skipped_by_a_reader_between_their_commits(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    submit(api, service, {"text": "first"})
    submit(api, service, {"text": "second"})
    (run_id, _, first, _), (_, _, second, _) = chunks_pending(services)
    other = threading.Thread(target=_append, args=(services, run_id, second))
    with services.engine.begin() as connection:
        feed.append_to_feeds(connection, [(run_id, first)])  # the lower number, committed after the other has begun
        other.start()
        blocked = wait_until(lambda: _waits_for_a_lock(services), timeout_s=10)
        between = feed.feed_page(services.engine, "acme", after=0, limit=10)
    other.join()
    after = max([n for n, _ in between], default=0)

    assert blocked
    assert [item.seq for _, item in feed.feed_page(services.engine, "acme", after=after, limit=10)] == [first, second]


@pytest.mark.parametrize("statement", [feed._APPEND, decisions._SUBMITTED], ids=["feed", "decisions"])
def test_settled_items_of_a_run_that_postgres_does_not_know_yet_are_looked_up_by_their_whole_key(
    api: TestClient, services: Services, service: dict[str, str], statement: sa.TextClause
) -> None:
    submit(api, service, *({"text": f"text {n}"} for n in range(50)))
    settle_pending(services)
    with services.engine.connect() as connection:
        connection.execute(sa.text("ANALYZE"))
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))  # as if it were a large table
        explain = sa.text(f"EXPLAIN {statement}")
        keys = {"run_id": "unknown", "run_ids": ["unknown"] * 64, "seqs": list(range(64))}
        plan = "\n".join(connection.execute(explain, {**keys, "event": "item.judged"}).scalars())

    assert "Index Cond: ((run_id = s.run_id) AND (seq = s.seq))" in plan


def _append(services: Services, run_id: str, seq: int) -> None:
    with services.engine.begin() as connection:
        feed.append_to_feeds(connection, [(run_id, seq)])


def _waits_for_a_lock(services: Services) -> bool:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with services.engine.connect() as connection:
        return bool(connection.scalar(sa.text(statement)))


def test_a_request_sent_again_under_its_key_counts_once(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    once = {"Idempotency-Key": "k1"}
    answers = [submit(api, service, {"text": "a"}, {"text": "bb"}, **once) for _ in range(3)]

    assert answers[0] == answers[1] == answers[2]
    assert accepted(services) == 2


def test_a_key_with_another_body_or_on_another_route_is_refused(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    once = {**service, "Idempotency-Key": "k1"}
    submit(api, once, {"text": "a"})
    other = api.post("/v1/items", headers=once, json={"items": [{"text": "b"}]})
    elsewhere = api.post("/v1/moderations", headers=once, json={"input": "a"})

    assert [other.status_code, elsewhere.status_code] == [409, 409]
    assert other.json()["field"] == "Idempotency-Key"
    assert accepted(services) == 1


def test_a_key_in_flight_is_refused_until_its_request_is_committed(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    with services.engine.begin() as connection:
        make_once(connection, IdempotencyKey("acme", "k1", b"x" * 16), {"run_id": "r", "seqs": []})
        answer = api.post("/v1/items", headers={**service, "Idempotency-Key": "k1"}, json={"items": [{"text": "a"}]})

    assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
    assert answer.json()["type"].endswith("request-in-flight")
    assert accepted(services) == 0


def test_keys_of_two_tenants_do_not_meet_and_old_ones_are_forgotten(services: Services) -> None:
    ours, theirs = IdempotencyKey("acme", "k", b"1" * 16), IdempotencyKey("other", "k", b"2" * 16)
    with services.engine.begin() as connection:
        make_once(connection, ours, {"batch": "b"})

    assert find_made(services.engine, theirs) is None
    assert forget_old_keys(services.engine, older_than_s=60) == 0
    assert find_made(services.engine, ours) == {"batch": "b"}
    assert forget_old_keys(services.engine, older_than_s=0) == 1
    assert find_made(services.engine, ours) is None


def limited(services: Services, **limits: float) -> TestClient:
    services.settings = services.settings.model_copy(update=limits)
    return TestClient(build_app(services, default_guard="fake"))


def test_a_tenant_above_its_rate_is_told_when_to_come_back_and_others_are_served(
    services: Services, service: dict[str, str], key_for: Any
) -> None:
    with limited(services, tenant_items_per_minute=3) as api:
        submit(api, service, {"text": "a"}, {"text": "b"})
        refused = api.post("/v1/items", headers=service, json={"items": [{"text": "a"}] * 2})
        submit(api, key_for(tenant="other"), {"text": "a"})
        counted = api.get("/metrics").text

    assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (429, "rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert 'libra_gateway_requests_refused_total{reason="rate-limited",tenant="acme"} 1.0' in counted


def test_a_tenant_whose_share_waits_is_refused_and_others_are_served(
    services: Services, service: dict[str, str], key_for: Any
) -> None:
    with limited(services, tenant_pending_items=2) as api:
        submit(api, service, *[{"text": "a"}] * 2)
        wait_until(lambda: _status(api, service) == 429, timeout_s=5)
        refused = api.post("/v1/items", headers=service, json={"items": [{"text": "a"}]})
        submit(api, key_for(tenant="other"), {"text": "a"})
        settle_pending(services)
        came_back = wait_until(lambda: _status(api, service) == 202, timeout_s=5)

    assert refused.json()["type"].endswith("share-used")
    assert came_back


def test_an_old_queue_refuses_everybody_by_its_age(services: Services, service: dict[str, str]) -> None:
    with limited(services, live_high_water_age_s=0.2) as api:
        submit(api, service, {"text": "nobody works"})
        refused = wait_until(lambda: _status(api, service) == 429, timeout_s=10)
        answer = api.post("/v1/items", headers=service, json={"items": [{"text": "a"}]})

    assert refused
    assert answer.json()["type"].endswith("queue-full")
    assert int(answer.headers["retry-after"]) >= 1


def _status(api: TestClient, headers: dict[str, str]) -> int:
    return api.post("/v1/items", headers=headers, json={"items": [{"text": "a"}]}).status_code


def test_without_redis_nothing_is_accepted_and_the_answer_says_to_come_back(
    services: Services, service: dict[str, str], ledger_url: str
) -> None:
    away = Services(services.settings, "redis://127.0.0.1:1/0", ledger_url, embedded=True)
    answer = TestClient(build_app(away, default_guard="fake")).post(
        "/v1/items", headers=service, json={"items": [{"text": "a"}]}
    )
    away.engine.dispose()

    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert accepted(services) == 0


def test_a_run_that_an_operator_ended_takes_nothing_more_and_the_day_goes_on_in_another(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    runs = []
    for _ in range(2):
        runs.append(submit(api, service, {"text": "a"})["data"][0]["id"].split("_")[1])
        settlement.cancel(services.engine, runs[-1])
    runs += {one["id"].split("_")[1] for _ in range(2) for one in submit(api, service, {"text": "b"})["data"]}
    names = [run_status(services.engine, run_id).name for run_id in runs]

    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    assert [item["verdict"]["reason"] for item in api.get("/v1/verdicts", headers=service).json()["data"]] == [
        "cancelled"
    ] * 2


def test_a_guard_that_nobody_serves_is_refused_unless_it_is_the_default(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    body = {"items": [{"text": "a"}], "guard": "libra-tiny"}
    refused = api.post("/v1/items", headers=service, json=body)
    services.coordination.presence.announce(Announcement(id="w", kind="worker", state="ready", guard="libra-tiny"))

    assert refused.json()["type"].endswith("guard-not-served")
    assert api.post("/v1/items", headers=service, json=body).status_code == 202
