"""The gateway refuses what its guard cannot judge before it is in the ledger; the rest keeps its kind to the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from infra.guard_catalogue import GUARDS
from infra.guard_sheets import kinds_of
from infra.servers.services import Services
from libra_fleet.client import _item
from producer.gateway.app import build_app
from schemas.fleet import Announcement
from schemas.items import Kind
from tests.integration.gateway.test_batches import wait_for
from tests.support.settling import settle_pending

TALK = [
    {"role": "user", "content": "先问"},
    {"role": "assistant", "content": "先答"},
    {"role": "user", "content": "后问"},
]
FORMS: dict[Kind, dict[str, Any]] = {
    Kind.TEXT: {"text": "文"},
    Kind.PROMPT: {"prompt": "问"},
    Kind.RESPONSE: {"response": "答"},
    Kind.PAIR: {"prompt": "问", "response": "答"},
    Kind.MESSAGES: {"messages": TALK},
}


@pytest.fixture(params=["libra-guard-qwen2.5-7b-instruct", "qwen3guard-gen-8b", "md-judge-v0.1", "libra-tiny"])
def guard(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(services: Services, guard: str) -> Iterator[TestClient]:
    with TestClient(build_app(services, default_guard=guard)) as client:
        yield client


def kinds_in(services: Services) -> list[str]:
    with services.engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT kind FROM items ORDER BY run_id, seq")))


def test_a_kind_that_the_guard_cannot_judge_is_answered_with_400_and_is_never_enqueued(
    served: TestClient, services: Services, service: dict[str, str], guard: str
) -> None:
    known = kinds_of(GUARDS[guard])
    assert known
    accepted = []
    for kind, form in FORMS.items():
        answer = served.post("/v1/items", headers=service, json={"items": [{"text": "好"}, form]})
        if kind in known:
            assert answer.status_code == 202, answer.text
            accepted += ["text", kind.value]
            continue
        problem = answer.json()
        assert (answer.status_code, problem["field"]) == (400, "items.1")
        assert problem["type"].endswith("kind-not-judged")
        assert f"{guard} (of the family {GUARDS[guard].family}) cannot judge {kind.called}; it can" in problem["detail"]
    assert sorted(kinds_in(services)) == sorted(accepted)


@pytest.mark.parametrize("guard", ["qwen3guard-gen-8b"])
def test_a_batch_with_such_a_line_says_so(served: TestClient, services: Services, service: dict[str, str]) -> None:
    lines = [
        {"custom_id": kind.value, "method": "POST", "url": "/v1/items", "body": form} for kind, form in FORMS.items()
    ]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    upload = served.post("/v1/files", headers=service, files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
    order = {"input_file_id": upload.json()["id"], "endpoint": "/v1/items", "completion_window": "24h"}
    batch = served.post("/v1/batches", headers=service, json=order).json()

    done = wait_for(served, service, batch["id"], "failed")

    (error,) = done["errors"]["data"]
    assert (error["line"], error["code"]) == (3, "invalid_request")
    assert "cannot judge a response alone" in error["message"]
    assert kinds_in(services) == []


def test_a_guard_that_is_in_no_list_judges_what_its_worker_announces(
    services: Services, service: dict[str, str]
) -> None:
    known = ["text", "pair", "prompt", "of a later version"]
    worker = Announcement(id="w-1-0", kind="worker", state="ready", guard="mine", kinds=known)
    services.coordination.presence.announce(worker)
    with TestClient(build_app(services, default_guard="mine")) as api:
        answers = {
            kind: api.post("/v1/items", headers=service, json={"items": [form]}).status_code
            for kind, form in FORMS.items()
        }

    assert answers == {Kind.TEXT: 202, Kind.PROMPT: 202, Kind.RESPONSE: 400, Kind.PAIR: 202, Kind.MESSAGES: 400}


@pytest.mark.parametrize("guard", ["qwen3guard-gen-8b"])
def test_what_the_client_sends_keeps_its_kind(served: TestClient, services: Services, service: dict[str, str]) -> None:
    asked = [
        _item(None, prompt="问", response=None, question=None, messages=None),
        _item(None, prompt="问", response="答", question=None, messages=None),
        _item(None, prompt=None, response=None, question=None, messages=TALK),
        _item("文", prompt=None, response=None, question=None, messages=None),
    ]
    body = {"items": [one.model_dump(mode="json", exclude_none=True) for one in asked]}
    answer = served.post("/v1/items", headers=service, json=body)

    assert answer.status_code == 202, answer.text
    assert sorted(kinds_in(services)) == ["messages", "pair", "prompt", "text"]
    settle_pending(services)
    name = answer.json()["data"][2]["id"]
    assert served.get(f"/v1/items/{name}", headers=service).json()["status"] == "settled"


@pytest.mark.parametrize("guard", ["libra-guard-qwen2.5-7b-instruct"])
def test_a_foreign_wire_lets_nothing_pass_that_the_guard_cannot_judge_and_says_why(
    served: TestClient, services: Services, service: dict[str, str]
) -> None:
    litellm = {"input_type": "request", "texts": ["问"], "request_data": {}}
    dify = {"point": "app.moderation.input", "params": {"app_id": "a", "inputs": {}, "query": "问"}}

    blocked = served.post("/beta/litellm_basic_guardrail_api", headers=service, json=litellm).json()
    flagged = served.post("/connect/dify", headers=service, json=dify).json()

    assert blocked["action"] == "BLOCKED"
    assert (
        "libra-guard-qwen2.5-7b-instruct (of the family libra) cannot judge a prompt alone" in blocked["blocked_reason"]
    )
    assert "items.0" not in blocked["blocked_reason"]
    assert flagged["flagged"] is True
    assert kinds_in(services) == []
