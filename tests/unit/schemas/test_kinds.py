"""An item says what it is: its kind, who speaks, and the form in which that travels."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from schemas.guards import Mode
from schemas.http import ItemRequest
from schemas.items import MAX_TURNS, Item, Kind, Turn, dialogue_of
from schemas.messages import ChunkItem, JudgeChunk, Lane, NewerVersionError, decode_chunk
from schemas.runs import RunSpec

USER, ASSISTANT = Turn(role="user", content="a"), Turn(role="assistant", content="b")
OF_EACH_KIND = {
    Kind.TEXT: Item(id="1", response="r"),
    Kind.PROMPT: Item(id="1", question="r"),
    Kind.RESPONSE: Item(id="1", response="r", kind=Kind.RESPONSE),
    Kind.PAIR: Item(id="1", question="q", response="r"),
    Kind.MESSAGES: Item(id="1", question="r", history=(USER, ASSISTANT)),
}


def chunk_of(*items: ChunkItem) -> JudgeChunk:
    return RunSpec(guard="fake", source="s").chunk("r1", 0, items, iteration=0, enqueued_at=1.0)


def test_an_items_kind_is_what_its_texts_show() -> None:
    assert {kind: item.kind for kind, item in OF_EACH_KIND.items()} == {kind: kind for kind in Kind}


def test_a_kind_that_the_texts_deny_is_refused() -> None:
    for texts, kind in [({"question": "q", "response": "r"}, Kind.PROMPT), ({"response": "r"}, Kind.PAIR)]:
        with pytest.raises(ValidationError, match="not of a"):
            Item(id="1", kind=kind, **texts)


@pytest.mark.parametrize("texts", [{}, {"response": " "}, {"question": " "}, {"question": "q", "response": " "}])
def test_an_item_without_a_text_is_refused(texts: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="the text to judge is empty"):
        Item(id="1", **texts)


def test_items_differ_in_their_hash_by_kind_turns_and_roles() -> None:
    other = Item(id="1", question="r", history=(USER, Turn(role="user", content="b")))
    split = Item(id="1", question="r", history=(Turn(role="user", content="ab"),))
    hashes = {item.content_hash for item in (*OF_EACH_KIND.values(), other, split)}

    assert len(hashes) == len(OF_EACH_KIND) + 2


def test_texts_and_pairs_keep_the_hashes_that_older_ledgers_hold() -> None:
    """As commit 18bbdae computed them."""
    assert Item(id="1", response="r").content_hash.hex() == "6f4c461cd15e239f02c598f97c4457e7"
    assert Item(id="1", question="q", response="r").content_hash.hex() == "647eee2594bcf746be976ce6ee780345"


def test_a_conversation_has_a_limit_of_turns_and_of_bytes() -> None:
    with pytest.raises(ValidationError, match="at most"):
        Item(id="1", question="q", history=(USER,) * (MAX_TURNS + 1))
    with pytest.raises(ValidationError, match="the conversation: "):
        Item(id="1", question="q" * 300_000, history=(Turn(role="user", content="a" * 300_000),))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "system", "content": "be nice"}, "message 1: the role system is an instruction to the model"),
        ({"role": "developer", "content": "be nice"}, "message 1: the role developer is an instruction to the model"),
        ({"role": "tool", "content": "42"}, "message 1: the role tool is a tool's output"),
        ({"role": "function", "content": "42"}, "message 1: the role function is a tool's output"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "message 1: a call of a tool"),
        ({"role": "User", "content": "a"}, "message 1: the role must be user or assistant"),
        ({"content": "a"}, "message 1: the role must be user or assistant"),
        ("a", "message 1: the role must be user or assistant"),
        ({"role": "user", "content": " "}, "message 1: its content is empty"),
        ({"role": "user", "content": None}, "message 1: its content must be text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "message 1: its content must be text"),
        ({"role": "user", "content": "a\0"}, "message 1: contains a NUL character"),
        ({"role": "user", "content": "\ud800"}, "message 1: contains a lone surrogate"),
    ],
)
def test_a_message_that_no_guard_judges_is_refused_with_its_place(message: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        dialogue_of([{"role": "user", "content": "a"}, message])


def test_the_text_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert dialogue_of([{"role": "user", "content": parts}]).question == "a\nb"


@pytest.mark.parametrize("item", OF_EACH_KIND.values(), ids=OF_EACH_KIND)
def test_an_item_of_each_kind_travels_and_comes_back(item: Item) -> None:
    chunk = chunk_of(ChunkItem.of(7, item))
    (back,) = decode_chunk(JudgeChunk, chunk.model_dump_json()).items

    assert (back.kind, back.question, back.response, back.history) == (
        *(item.kind, item.question, item.response, item.history),
    )


def test_an_old_message_keeps_its_meaning_and_an_old_reader_parks_what_it_would_misread() -> None:
    old = [{"seq": 0, "question": "q", "response": "r"}, {"seq": 1, "question": "", "response": "r"}]
    head = {"version": 1, "run_id": "r1", "chunk_no": 0, "guard": "fake", "mode": Mode.SCORE, "lane": Lane.BULK}
    read = decode_chunk(JudgeChunk, json.dumps({**head, "enqueued_at": 1.0, "items": old}))
    assert [item.kind for item in read.items] == [Kind.PAIR, Kind.TEXT]

    plain = [ChunkItem.of(at, OF_EACH_KIND[kind]) for at, kind in enumerate((Kind.TEXT, Kind.PAIR))]
    written = json.loads(chunk_of(*plain).model_dump_json())
    assert written["version"] == 1
    assert all(set(item) == {"seq", "question", "response"} for item in written["items"])
    for kind in (Kind.PROMPT, Kind.RESPONSE, Kind.MESSAGES):
        chunk = chunk_of(ChunkItem.of(0, OF_EACH_KIND[kind]))
        assert chunk.version == 3, "readers of versions 1 and 2 park it"
        with pytest.raises(ValidationError, match="version 3"):
            JudgeChunk.model_validate({**dict(chunk), "version": 2})
    with pytest.raises(NewerVersionError):
        decode_chunk(JudgeChunk, json.dumps({**written, "version": 5}))


def test_a_request_says_what_its_item_is_in_one_way() -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}, {"role": "user", "content": "q"}]
    asked = {
        Kind.TEXT: {"text": "t"},
        Kind.PROMPT: {"prompt": "p"},
        Kind.RESPONSE: {"response": "r"},
        Kind.PAIR: {"prompt": "p", "response": "r"},
        Kind.MESSAGES: {"messages": turns},
    }
    assert {kind: ItemRequest.model_validate(one).dialogue.kind for kind, one in asked.items()} == {k: k for k in Kind}
    assert ItemRequest(question="p").dialogue.kind is Kind.PROMPT
    assert ItemRequest(question="p", response="r").dialogue.kind is Kind.PAIR
    for wrong in (
        *({}, {"text": "t", "prompt": "p"}, {"text": "t", "response": "r"}, {"text": "t", "messages": turns}),
        *({"messages": turns, "response": "r"}, {"prompt": "p", "question": "q"}, {"messages": []}),
    ):
        with pytest.raises(ValidationError):
            ItemRequest.model_validate(wrong)
