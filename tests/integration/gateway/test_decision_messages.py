"""From a request to the messages for the platform: the policy's action over HTTP and by webhook, then a human's."""

from __future__ import annotations

import json
import threading

import pytest
from fastapi.testclient import TestClient

from infra.ledger import decisions, reviews, webhooks
from infra.process import wait_until
from infra.servers.services import Services
from infra.settings import Settings
from producer.webhooks.sender import Sender
from schemas.items import Label
from tests.integration.gateway.conftest import POLICY
from tests.support.receiver import Receiver
from tests.support.settling import settle_pending
from tests.support.submissions import policy_of


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Gateway and sender allow webhooks to loopback."""
    return settings.model_copy(update={"webhook_allow": "127.0.0.1", "webhook_poll_s": 0.02})


def test_an_item_is_decided_notified_and_decided_again_by_a_human(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    decisions.put_policy(services.engine, policy_of(name=POLICY))
    webhooks.rotate_tenant_secret(services.engine, "acme")
    stop = threading.Event()
    with Receiver().running() as receiver:
        asked = {"text": "t", "policy": POLICY, "callback_url": receiver.url}
        answer = api.post("/v1/items", headers=service, json={"items": [asked]})
        assert answer.status_code == 202, answer.text
        name = answer.json()["data"][0]["id"]
        settle_pending(services, label=Label.UNSAFE, p_unsafe=0.6)
        by_policy = api.get(f"/v1/items/{name}", headers=service).json()["decision"]
        thread = threading.Thread(
            target=Sender(services.engine, services.settings, services.coordination).run, args=(stop,)
        )
        thread.start()
        try:
            assert wait_until(lambda: len(receiver.received) == 1, timeout_s=30)
            assert wait_until(lambda: _states(services) == ["delivered"], timeout_s=30)
            (waiting,) = reviews.review_queue(services.engine, "acme", 10, audit_share=0)
            reviews.decide(services.engine, waiting.run_id, waiting.seq, label=Label.UNSAFE, moderator="ann")
            by_human = api.get(f"/v1/items/{name}", headers=service).json()["decision"]
            bodies = _bodies(services)
            assert wait_until(lambda: _states(services) == ["delivered", "delivered"], timeout_s=30)
        finally:
            stop.set()
            thread.join(30)

    assert (by_policy["action"], by_policy["by"], by_policy["policy"]) == ("review", "policy", POLICY)
    assert (by_human["action"], by_human["by"]) == ("block", "human")
    assert {(body["type"], body["data"]["id"], body["data"]["action"]) for body in bodies} == {
        ("item.judged", name, "review"),
        ("item.reviewed", name, "block"),
    }
    assert len(receiver.received) == 2


def _states(services: Services) -> list[str]:
    return [row.state for row in webhooks.sent(services.engine)]


def _bodies(services: Services) -> list[dict[str, dict[str, str]]]:
    with services.engine.connect() as connection:
        return [json.loads(body) for body in connection.exec_driver_sql("SELECT body FROM outbox").scalars()]
