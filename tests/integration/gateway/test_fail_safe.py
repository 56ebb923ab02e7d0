"""What OpenAI's clients see where there is no verdict, and what they may send. The ledger is settled by hand."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.batch_create_params import BatchCreateParams
from openai.types.batch_list_params import BatchListParams
from openai.types.file_create_params import FileCreateParams
from openai.types.file_list_params import FileListParams
from openai.types.moderation_create_params import ModerationCreateParams

from infra.errors import UsageError
from infra.process import wait_until
from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.app import build_app
from schemas.verdicts import Outcome
from tests.integration.gateway.test_batches import finish, line, order, rows, wait_for
from tests.support.settling import chunks_pending, settle_pending

DEAD = {"outcome": Outcome.DEAD, "label": None, "p_unsafe": None, "reason": "too hard"}
UNREAD = {"outcome": Outcome.UNPARSEABLE, "label": None, "p_unsafe": None}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Time enough to settle meanwhile."""
    return settings.model_copy(update={"gateway_wait_s": 20})


def judged(api: TestClient, services: Services, headers: dict[str, str], body: object, **verdict: object) -> Any:
    """The answer to a moderation whose items get a verdict while it waits."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.post, "/v1/moderations", headers=headers, json=body)
        assert wait_until(lambda: bool(chunks_pending(services)), timeout_s=10)
        settle_pending(services, **verdict)
        return answer.result()


def with_settings(services: Services, settings: Settings, **changed: object) -> TestClient:
    """A gateway on the same servers under other settings."""
    return TestClient(build_app(replace(services, settings=settings.model_copy(update=changed)), default_guard="fake"))


@pytest.mark.parametrize("verdict", [DEAD, UNREAD])
def test_what_was_not_judged_is_flagged(
    api: TestClient, services: Services, service: dict[str, str], verdict: dict[str, Any]
) -> None:
    answer = judged(api, services, service, {"input": "a"}, **verdict)

    (result,) = answer.json()["results"]
    assert answer.status_code == 200
    assert result["flagged"] is True
    assert set(result["categories"].values()) == {True}
    assert (result["libra"]["outcome"], result["libra"]["label"]) == (verdict["outcome"].value, None)


@pytest.mark.parametrize("verdict", [DEAD, UNREAD])
def test_by_setting_what_was_not_judged_is_an_error_that_names_the_input(
    services: Services, settings: Settings, service: dict[str, str], verdict: dict[str, Any]
) -> None:
    with with_settings(services, settings, unjudged="error") as api:
        answer = judged(api, services, service, {"input": ["a", "b"]}, **verdict)

    assert answer.status_code == 502
    assert answer.headers["x-should-retry"] == "false", "it has settled: asked again it would be judged again"
    assert answer.json()["error"]["param"] == "input.0"
    assert verdict["outcome"].value in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("prefer", "status"),
    [(None, 503), ("return=minimal", 503), ("wait=0", 202), ("respond-async", 202), ("respond-async, wait=0", 202)],
)
def test_202_is_for_those_who_asked_for_it_and_503_for_all_others(
    services: Services, settings: Settings, service: dict[str, str], prefer: str | None, status: int
) -> None:
    with with_settings(services, settings, gateway_wait_s=0.1) as api:
        headers = service if prefer is None else {**service, "Prefer": prefer}
        answer = api.post("/v1/moderations", headers=headers, json={"input": "a"})
        item = api.get(answer.headers["Location"], headers=service).json()

    assert answer.status_code == status
    assert item["status"] == "pending", "it is accepted all the same, and can be read later"
    if status == 503:
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["error"]["type"] == "server_error"
        assert answer.json()["items"] == [item["id"]]


def test_an_error_holds_openais_object_on_openais_routes_and_nowhere_else(
    api: TestClient, service: dict[str, str]
) -> None:
    on_openais = api.post("/v1/moderations", headers=service, json={"input": ""}).json()
    unknown = api.post("/v1/moderations", json={"input": "a"}).json()
    too_large = api.post("/v1/moderations", headers=service, content=b"x" * 100_000).json()
    ours = api.post("/v1/items", headers=service, json={"items": []}).json()

    assert on_openais["error"] == {
        "message": on_openais["detail"],
        "type": "invalid_request_error",
        "param": "input",
        "code": "invalid-field",
    }
    assert unknown["error"]["code"] == "invalid_api_key"
    assert too_large["error"]["code"] == "too-large"
    assert "error" not in ours


def test_every_field_of_openais_own_moderation_is_accepted(api: TestClient, service: dict[str, str]) -> None:
    body = {"input": "a", "model": "openai/omni-moderation-latest"}
    assert set(body) == set(ModerationCreateParams.__annotations__)

    answer = api.post("/v1/moderations", headers={**service, "Prefer": "respond-async"}, json=body)

    assert (answer.status_code, answer.json()["model"]) == (202, "fake")


def test_every_field_of_openais_own_batch_is_accepted(api: TestClient, service: dict[str, str]) -> None:
    fields = {"metadata": {"k": "v"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}}
    batch = order(api, service, line("a", input="x"), **fields)
    sent = {"input_file_id", "endpoint", "completion_window", *fields}
    assert sent == set(BatchCreateParams.__annotations__)
    assert batch["object"] == "batch"


def test_the_end_user_and_metadata_of_a_moderation_are_kept_with_its_items(
    api: TestClient, service: dict[str, str]
) -> None:
    body = {"input": "a", "user": "u9", "safety_identifier": "s1", "metadata": {"board": "cats"}}
    answer = api.post("/v1/moderations", headers={**service, "Prefer": "respond-async"}, json=body)
    item = api.get(answer.headers["Location"], headers=service).json()
    assert item["metadata"] == {"user": "u9", "safety_identifier": "s1", "board": "cats"}


def test_an_image_is_refused_by_name(api: TestClient, service: dict[str, str]) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}]
    answer = api.post("/v1/moderations", headers=service, json={"input": parts})
    assert answer.status_code == 422
    assert "part 1 is an image_url" in answer.json()["error"]["message"]


def test_files_are_listed_by_every_field_of_openais_own_list(
    api: TestClient, service: dict[str, str], key_for: Callable[..., dict[str, str]]
) -> None:
    def upload(name: str) -> str:
        form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        answer = api.post("/v1/files", headers=service, data=form, files={"file": (name, b"{}")})
        return str(answer.json()["id"])

    def listed(**query: str | int) -> list[str]:
        return [str(one["id"]) for one in api.get("/v1/files", headers=service, params=query).json()["data"]]

    assert set(FileListParams.__annotations__) == {"after", "limit", "order", "purpose"}
    assert set(BatchListParams.__annotations__) == {"after", "limit"}
    assert set(FileCreateParams.__annotations__) == {"file", "purpose", "expires_after"}
    first, second, third = (upload(name) for name in "abc")
    assert listed() == listed(purpose="batch") == [third, second, first]
    assert listed(order="asc", limit=2) == [first, second]
    assert listed(order="asc", after=second) == [third]
    assert listed(after=second) == [first]
    assert listed(purpose="assistants") == []
    assert api.get("/v1/files", headers=key_for(tenant="other")).json()["data"] == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_batch_is_read_as_editors_save_it_and_a_line_may_hold_several_texts(
    api: TestClient, services: Services, service: dict[str, str], encoding: str
) -> None:
    lines = [line("three", input=["一段长得多的文本" * 20, "b", "c"]), line("one", input="d")]
    content = "\r\n".join(lines).encode(encoding)
    stored = api.post("/v1/files", headers=service, data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    body = {"input_file_id": stored.json()["id"], "endpoint": "/v1/moderations", "completion_window": "24h"}
    batch = api.post("/v1/batches", headers=service, json=body).json()
    assert wait_until(lambda: sum(row.size for row in chunks_pending(services)) == 4, timeout_s=20)
    finish(services, wait_for(api, service, batch["id"], "in_progress")["run_id"])

    done = wait_for(api, service, batch["id"], "completed")
    found = rows(api, service, done["output_file_id"])
    assert [(row["custom_id"], len(row["response"]["body"]["results"])) for row in found] == [("three", 3), ("one", 1)]


def test_a_batch_line_with_a_text_that_was_not_judged_is_an_error_line(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    batch = order(api, service, line("x", input=["a", "b"]), line("y", input="c"))
    assert wait_until(lambda: sum(row.size for row in chunks_pending(services)) == 3, timeout_s=20)
    finish(services, wait_for(api, service, batch["id"], "in_progress")["run_id"], **DEAD)

    done = wait_for(api, service, batch["id"], "completed")
    errors = rows(api, service, done["error_file_id"])
    assert [(row["custom_id"], row["error"]["code"]) for row in errors] == [("x", "dead"), ("y", "dead")]
    assert rows(api, service, done["output_file_id"]) == []


def test_a_category_that_openai_does_not_have_is_refused_at_start(services: Services, settings: Settings) -> None:
    with (
        pytest.raises(UsageError, match="LIBRA_UNNAMED_CATEGORY"),
        with_settings(services, settings, unnamed_category="spam"),
    ):
        pass
