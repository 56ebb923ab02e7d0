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
        (in_response({"choices": [{"message": {"parts": ["x"]}}]}), ["payload.choices.0"]),
        (in_request({"input": 5}), ["payload.input"]),
        (in_request({"prompt": [1, 2]}), ["payload.prompt"]),
    ],
)
def test_a_form_that_is_unknown_is_not_judged(found: Any, unjudged: list[str]) -> None:
    assert (found.texts, found.unjudged) == ([], unjudged)


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "input_video", "data": "x"}, "content.1"),
        ({"type": "later", "words": "x"}, "content.1"),
        ({"type": "later", "audio": {"data": "x"}}, "content.1.audio"),
        (7, "content.1"),
    ],
)
def test_a_part_that_is_unknown_is_not_judged_though_its_neighbours_are(part: object, place: str) -> None:
    found = in_request({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]})

    assert texts(found) == {"payload.messages.0.content.0.text": "hi"}
    assert found.unjudged == [f"payload.messages.0.{place}"]


def test_a_part_without_words_hides_nothing() -> None:
    thinking = {"type": "redacted_thinking", "data": "x"}
    result = {"type": "tool_result", "tool_use_id": "t"}
    assert in_response({"content": [thinking, {"type": "text", "text": "a"}, result]}).unjudged == []
    logprobs = {"content": [{"token": "a", "logprob": -1.0}]}
    assert in_response({"choices": [{"message": {"content": "a"}, "logprobs": logprobs}]}).unjudged == []
    form = {"format": {"type": "json_schema", "schema": {"properties": {"image": {"type": "string"}}}}}
    said = [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}]
    assert texts(in_response({"output": said, "text": form})) == {"payload.output.0.content.0.text": "a"}
    assert in_response({"output": said, "text": form}).unjudged == []


@pytest.mark.parametrize("name", ["choices", "content", "output", "text", "reasoning", "tool_calls"])
def test_a_plain_text_in_any_field_of_an_answer_is_judged(name: str) -> None:
    assert sorted(texts(in_response({"content": "a", name: "b"})).values()) in (["a", "b"], ["b"])
    assert in_response({name: ["b"]}) != ([], [])


def test_what_a_model_speaks_is_not_judged() -> None:
    spoken = {"message": {"content": None, "audio": {"id": "a", "data": "x", "transcript": "y"}}}
    assert in_response({"choices": [spoken]}).unjudged == ["payload.choices.0.message.audio"]


def test_each_choice_and_each_item_of_an_answer_counts() -> None:
    known = {"message": {"content": "a"}}
    assert in_response({"choices": [known, {"message": {"parts": ["x"]}}]}).unjudged == ["payload.choices.1"]
    assert in_response({"output": [{"type": "later", "words": "x"}], "text": "a"}).unjudged == ["payload.output.0"]


@pytest.mark.parametrize(
    "call",
    [
        {"type": "code_interpreter_call", "code": "x"},
        {"type": "local_shell_call", "action": {"command": ["x"]}},
        {"type": "web_search_call", "action": {"query": "x"}},
        {"type": "file_search_call", "queries": ["x"]},
        {"type": "apply_patch_call", "operation": {"diff": "x"}},
        {"type": "custom_tool_call", "input": "x"},
    ],
)
def test_what_a_model_has_a_hosted_tool_do_is_judged(call: dict[str, object]) -> None:
    assert list(texts(in_response({"output": [call]})).values()) == ["x"]


def test_an_image_in_a_tools_result_is_not_judged_and_an_argument_named_image_is() -> None:
    result = {"type": "function_call_output", "output": [{"type": "input_image", "image_url": "data:"}]}
    assert in_request({"input": [result]}) == ([], ["payload.input.0.output.0"])
    call = {"type": "tool_use", "name": "f", "input": {"type": "image", "of": "x"}}
    assert list(texts(in_response({"content": [call]})).values()) == ["image", "x"]


@pytest.mark.parametrize("empty", ["messages", "input", "prompt"])
@pytest.mark.parametrize("full", ["messages", "input", "prompt"])
def test_nothing_hides_behind_another_field_of_a_request(empty: str, full: str) -> None:
    assert list(texts(in_request({empty: [], full: ["x"]})).values()) == ["x"]


def test_a_completions_prompt_is_judged() -> None:
    assert texts(in_request({"prompt": "a"})) == {"payload.prompt": "a"}
    assert texts(in_request({"prompt": ["a", "b"]})) == {"payload.prompt.0": "a", "payload.prompt.1": "b"}
    stored = {"id": "p", "variables": {"name": "x"}}
    assert list(texts(in_request({"prompt": stored, "input": "y"})).values()) == ["y", "p", "x"]


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
