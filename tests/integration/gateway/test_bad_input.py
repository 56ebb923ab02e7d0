"""Every malformed request gets a problem document that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

BAD = [
    ("/v1/moderations", {}, "input"),
    ("/v1/moderations", {"input": ""}, "input"),
    ("/v1/moderations", {"input": " \n"}, "input"),
    ("/v1/moderations", {"input": []}, "input"),
    ("/v1/moderations", {"input": 3}, "input"),
    ("/v1/moderations", {"input": ["a", 3]}, "input.1"),
    ("/v1/moderations", {"input": ["a", ""]}, "input.1"),
    ("/v1/moderations", {"input": "a\x00b"}, "input"),
    ("/v1/moderations", {"input": "lone \ud800"}, "input"),
    ("/v1/moderations", {"input": ["a"] * 1001}, "input"),
    ("/v1/moderations", {"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input"),
    ("/v1/moderations", {"input": "a", "model": "no-such-guard"}, "model"),
    ("/v1/moderations", {"input": "a", "model": "libra-guard-\x00"}, "model"),
    ("/v1/moderations", {"input": "a", "modle": "fake"}, "modle"),
    ("/v1/items", {"items": []}, "items"),
    ("/v1/items", {"items": [{"text": "a"}] * 1001}, "items"),
    ("/v1/items", {"items": [{}]}, "items.0"),
    ("/v1/items", {"items": [{"text": "a", "response": "b"}]}, "items.0"),
    ("/v1/items", {"items": [{"text": "a", "question": "b"}]}, "items.0"),
    ("/v1/items", {"items": [{"text": "a"}, {"text": " "}]}, "items.1.text"),
    ("/v1/items", {"items": [{"response": "", "question": "b"}]}, "items.0.response"),
    ("/v1/items", {"items": [{"response": "a", "question": "b\x00"}]}, "items.0.question"),
    ("/v1/items", {"items": [{"text": "a", "custom_id": ""}]}, "items.0.custom_id"),
    ("/v1/items", {"items": [{"text": "a", "custom_id": "x" * 201}]}, "items.0.custom_id"),
    ("/v1/items", {"items": [{"text": "a", "custom_id": "\x00"}]}, "items.0.custom_id"),
    ("/v1/items", {"items": [{"text": "a", "policy": "unknown"}]}, "items.0.policy"),
    ("/v1/items", {"items": [{"text": "a", "callback_url": "file:///etc/passwd"}]}, "items.0.callback_url"),
    ("/v1/items", {"items": [{"text": "a", "callback_url": "http://u:p@h/"}]}, "items.0.callback_url"),
    ("/v1/items", {"items": [{"text": "a", "callback_url": "http://a.example/"}]}, "items.0.callback_url"),
    ("/v1/items", {"items": [{"text": "a", "callback_url": "https://2130706433/"}]}, "items.0.callback_url"),
    ("/v1/items", {"items": [{"text": "a", "metadata": {"k": 1}}]}, "items.0.metadata.k"),
    ("/v1/items", {"items": [{"text": "a", "metadata": {str(n): "" for n in range(17)}}]}, "items.0.metadata"),
    ("/v1/items", {"items": [{"text": "a"}], "guard": "no-such-guard"}, "guard"),
    ("/v1/batches", {"input_file_id": "file-x", "endpoint": "/v1/moderations"}, "completion_window"),
    ("/v1/batches", {"input_file_id": "f", "endpoint": "/v1/chat", "completion_window": "24h"}, "endpoint"),
    ("/v1/batches", {"input_file_id": "f", "endpoint": "/v1/items", "completion_window": "24h"}, "input_file_id"),
]


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    return found


def test_every_malformed_body_names_its_field(api: TestClient, service: dict[str, str]) -> None:
    for path, body, field in BAD:
        headers = {**service, "Content-Type": "application/json"}
        answer = api.post(path, headers=headers, content=json.dumps(body).encode())

        assert problem(answer, 422)["field"] == field, (path, body, answer.json())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"input": "\xe4\xb8"}', b"[" * 100_000])
def test_what_is_no_json_is_told_so(api: TestClient, service: dict[str, str], body: bytes) -> None:
    headers = {**service, "Content-Type": "application/json"}
    answer = api.post("/v1/moderations", headers=headers, content=body[:60_000])

    assert answer.status_code in {400, 422}
    assert problem(answer, answer.status_code)["field"] == "body"


def test_a_body_above_the_limit_is_refused_whether_announced_or_not(api: TestClient, service: dict[str, str]) -> None:
    body = json.dumps({"input": "a" * 70_000}).encode()
    announced = api.post("/v1/moderations", headers=service, content=body)
    streamed = api.post("/v1/moderations", headers=service, content=iter([body[:40_000], body[40_000:]]))

    assert problem(announced, 413)["field"] == "body"
    assert problem(streamed, 413)["field"] == "body"


def test_an_upload_has_a_limit_of_its_own(api: TestClient, service: dict[str, str]) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    file = b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n%s\r\n--x--\r\n'
    headers = {**service, "Content-Type": "multipart/form-data; boundary=x"}
    fits = api.post("/v1/files", headers=headers, content=head + file % (b"a" * 100_000))
    announced = api.post("/v1/files", headers=headers, content=head + file % (b"a" * 140_000))
    streamed = api.post("/v1/files", headers=headers, content=iter([head, file % (b"a" * 140_000)]))

    assert fits.status_code == 200
    assert problem(announced, 413)["field"] == "body"
    assert problem(streamed, 413)["field"] == "body"


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/verdicts?cursor=x", 422, "cursor"),
        ("/v1/verdicts?cursor=-1", 422, "cursor"),
        ("/v1/verdicts?cursor=9999999999999999999", 422, "cursor"),
        ("/v1/verdicts?limit=0", 422, "limit"),
        ("/v1/items/item_r0123456789_99999999999999999999", 404, None),
        ("/v1/items/%00", 404, None),
        ("/v1/runs/%00", 422, "run_id"),
        ("/v1/files/%00", 404, None),
        ("/v1/files/%E4%B8%8D/content", 404, None),
        ("/v1/batches/%00", 404, None),
        ("/v1/batches?after=%00", 422, "after"),
    ],
)
def test_bad_names_and_cursors_are_refused(
    api: TestClient, service: dict[str, str], path: str, status: int, field: str | None
) -> None:
    assert problem(api.get(path, headers=service), status).get("field") == field


@pytest.mark.parametrize("key", ["", "x" * 256, "with space"])
def test_an_idempotency_key_is_sober(api: TestClient, service: dict[str, str], key: str) -> None:
    headers = {**service, "Idempotency-Key": key}

    assert problem(api.post("/v1/items", headers=headers, json={"items": [{"text": "a"}]}), 422)


def test_a_body_of_another_content_type_is_told_what_to_send(api: TestClient, service: dict[str, str]) -> None:
    answer = api.post("/v1/moderations", headers=service, content=b'{"input": "a"}')

    assert "Content-Type" in problem(answer, 422)["detail"]


def test_a_problem_never_repeats_the_text(api: TestClient, service: dict[str, str]) -> None:
    body = {"items": [{"text": "SECRET", "question": "SECRET", "custom_id": ["SECRET"]}]}

    assert "SECRET" not in api.post("/v1/items", headers=service, json=body).text
