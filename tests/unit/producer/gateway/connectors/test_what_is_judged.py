"""What a request on a foreign wire holds that must be judged, before anybody judges it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request

from producer.gateway.connectors import adapter, aliyun, ogr, tencent
from producer.gateway.connectors.litellm import GuardrailRequest
from producer.gateway.connectors.webhook import WebhookRequest
from producer.gateway.problems import ProblemError

EVIL = [{"role": "user", "content": "x"}]


def request(body: bytes = b"", query: bytes = b"") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/v1/evaluate", "query_string": query, "headers": []}
    return Request(scope, receive)


def found(body: object) -> tuple[list[str], list[str]]:
    texts, unjudged = WebhookRequest.model_validate(body).found()
    return [text.dialogue.question or text.dialogue.response for text in texts], unjudged


@pytest.mark.parametrize(
    "added",
    [
        {"text": ""},
        {"text": "y"},
        {"texts": []},
        {"input": "y"},
        {"prompt": ""},
        {"content": "y"},
        {"choices": [{"message": {"content": "y"}}]},
        {"eventType": "beforeRequestHook", "request": {"text": "y"}},
    ],
)
def test_no_field_that_a_caller_adds_hides_the_messages_of_a_webhook(added: dict[str, object]) -> None:
    texts, unjudged = found({"messages": EVIL, **added})

    assert "x" in texts
    assert sorted(texts) in (["x"], ["x", "y"])
    assert unjudged == []


def test_an_answer_of_openais_responses_is_read_though_it_names_its_form_under_text() -> None:
    said = [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}]
    assert found({"output": said, "text": {"format": {"type": "text"}}, "prompt": None}) == (["a"], [])


def test_a_webhook_without_a_form_that_is_known_is_refused() -> None:
    for unknown in ({}, {"text": {"format": {}}}, {"words": "x"}, {"text": None}):
        with pytest.raises(ProblemError):
            found(unknown)
    assert found({"text": " ", "texts": ["", "a"]}) == (["a"], [])


def test_litellms_tool_calls_are_judged_in_every_form() -> None:
    calls = [
        {"function": {"arguments": '{"a": 1}'}},
        {"function": {"arguments": {"a": "b"}}},
        {"type": "custom", "custom": {"name": "f", "input": "c"}},
        {"function": {"name": "f", "arguments": ""}},
    ]
    asked = GuardrailRequest.model_validate({"input_type": "response", "tool_calls": calls})

    assert [(text.place, text.dialogue.response) for text in asked.judged_texts()] == [
        ("tool_calls.0.function.arguments", '{"a": 1}'),
        ("tool_calls.1.function.arguments.a", "b"),
        ("tool_calls.2.custom.input", "c"),
    ]
    assert asked.unjudged() == []
    assert GuardrailRequest(tool_calls=[{"later": {}}]).unjudged() == ["payload.tool_calls.0"]


@pytest.mark.parametrize("kind", ["input_audio", "file", "video_url", "later"])
def test_what_litellm_leaves_out_of_its_texts_is_not_judged(kind: str) -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": kind, kind: {"data": "x"}}]
    asked = GuardrailRequest.model_validate(
        {"texts": ["hi"], "structured_messages": [{"role": "user", "content": parts}]}
    )

    assert len(asked.unjudged()) == 1
    assert GuardrailRequest.model_validate({"texts": ["hi"], "structured_messages": EVIL}).unjudged() == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"payload": {"messages": [{"content": "\\ud83d"}]}}', "not-judged"),  # JavaScript cuts an emoji in two so
        (b'{"payload": ' + b"[" * 500 + b"]" * 500 + b"}", "not-judged"),
        (b'{"payload": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not-judged"),
        (b"{", "invalid-json"),
        (b"\xff", "invalid-json"),
        (b"{}", "invalid-event"),
    ],
)
def test_no_text_makes_an_ogr_event_malformed(body: bytes, kind: str) -> None:
    async def ask() -> ProblemError:
        with pytest.raises(ProblemError) as raised:
            await ogr._event(request(body))
        return raised.value

    problem = asyncio.run(ask())
    assert problem.kind == kind
    assert ogr._in_shape(problem, request()).status_code == (200 if kind == "not-judged" else 400)


@pytest.mark.parametrize(
    ("given", "waits"), [("nan", 10), ("inf", 10), ("-1", 0), ("2.5", 2.5), ("99", 10), ("x", 10), ("", 10)]
)
def test_a_caller_waits_for_a_number_of_seconds(given: str, waits: float) -> None:
    gateway: Any = SimpleNamespace(settings=SimpleNamespace(gateway_wait_s=10))
    assert adapter._wait_s(request(query=f"wait_s={given}".encode()), gateway) == waits


def test_a_kind_that_a_guard_does_not_judge_is_the_clouds_clients_own_error() -> None:
    problem = ProblemError(400, "kind-not-judged", "content: a prompt alone")

    assert json.loads(bytes(aliyun.error(problem).body))["Code"] == "InvalidParameter"
    assert json.loads(bytes(tencent.error(problem).body))["Response"]["Error"]["Code"] == "InvalidParameter"
