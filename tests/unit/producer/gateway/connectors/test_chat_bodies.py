"""What is to be judged in the bodies of chat APIs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.gateway.connectors.chat_bodies import in_request, in_response
from schemas.items import Kind

WORDS = st.text(min_size=1).filter(str.strip)


def texts(found: Any) -> dict[str, str]:
    return {text.place: text.dialogue.question or text.dialogue.response for text in found.texts}


def test_every_turn_of_an_openai_request_is_judged_but_instructions() -> None:
    found = in_request(
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{1}"}}]},
                {"role": "tool", "tool_call_id": "c", "content": "two"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "three"}, {"type": "image_url", "image_url": {}}],
                },
            ]
        }
    )

    assert texts(found) == {
        "payload.messages.1.content": "one",
        "payload.messages.2.tool_calls.0.function.arguments": "{1}",
        "payload.messages.3.content": "two",
        "payload.messages.4.content.0.text": "three",
    }
    assert [text.dialogue.kind for text in found.texts] == [Kind.PROMPT, Kind.RESPONSE, Kind.PROMPT, Kind.PROMPT]
    assert found.unjudged == ["payload.messages.4.content.1"]


def test_anthropics_blocks_and_tool_results_are_judged() -> None:
    found = in_request(
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"path": "/etc"}}]},
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}],
                },
            ]
        }
    )
    assert texts(found) == {
        "payload.messages.0.content.0.input.path": "/etc",
        "payload.messages.1.content.0.content.0.text": "x",
    }
    assert found.unjudged == ["payload.messages.1.content.0.content.1"]


def test_openais_responses_are_judged_on_both_sides() -> None:
    assert texts(in_request({"input": "hi"})) == {"payload.input": "hi"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "function_call_output", "output": "b"},
    ]
    assert list(texts(in_request({"input": items})).values()) == ["a", "b"]
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "c"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "d"}]},
        {"type": "function_call", "name": "f", "arguments": '{"e": 1}'},
    ]
    assert list(texts(in_response({"output": output})).values()) == ["c", "d", '{"e": 1}']


def test_all_that_a_model_says_in_an_answer_is_judged() -> None:
    choice = {"message": {"content": "a", "reasoning_content": "b", "tool_calls": [{"function": {"arguments": "{}"}}]}}
    assert texts(in_response({"choices": [choice], "id": "x", "model": "m"})) == {
        "payload.choices.0.message.content": "a",
        "payload.choices.0.message.reasoning_content": "b",
        "payload.choices.0.message.tool_calls.0.function.arguments": "{}",
    }
    assert list(texts(in_response({"content": [{"type": "text", "text": "a"}]})).values()) == ["a"]
    assert list(texts(in_response({"text": "a", "tool_calls": [{"arguments": {"k": "b"}}]})).values()) == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "unjudged"),
    [
        (in_request({}), ["payload"]),
        (in_request({"contents": [{"parts": [{"text": "x"}]}]}), ["payload"]),
        (in_request({"messages": [{"role": "user", "parts": [{"words": "x"}]}]}), ["payload.messages.0"]),
        (in_response({"candidates": []}), ["payload"]),
        (in_response({"choices": [{"message": {"parts": ["x"]}}]}), ["payload"]),
    ],
)
def test_a_form_that_is_unknown_is_not_judged(found: Any, unjudged: list[str]) -> None:
    assert (found.texts, found.unjudged) == ([], unjudged)


def test_an_empty_text_is_nothing_to_judge() -> None:
    assert in_request({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": None}]}) == (
        [],
        [],
    )
    assert in_response({"choices": [{"message": {"content": ""}}]}) == ([], [])


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), WORDS), min_size=1, max_size=5))
def test_no_turn_of_a_conversation_is_left_out(turns: list[tuple[str, str]]) -> None:
    found = in_request({"messages": [{"role": role, "content": text} for role, text in turns]})

    assert list(texts(found).values()) == [text for _, text in turns]
