"""The command line says of what is to be judged what it is: one text, a prompt, a response, both, a conversation."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from infra.errors import DataError, UsageError
from libra_fleet.cli.judge import _dialogue, _items
from schemas.items import Dialogue, Kind

TALK = [
    {"role": "user", "content": "先问"},
    {"role": "assistant", "content": "先答"},
    {"role": "user", "content": "后问"},
]


def asked(
    text: str | None = None,
    *,
    question: str = "",
    prompt: str | None = None,
    response: str | None = None,
    messages: Any = None,
) -> Dialogue:
    file = None if messages is None else io.BytesIO(json.dumps(messages).encode())
    return _dialogue(text, question, prompt, response, file)


@pytest.mark.parametrize(
    ("given", "kind", "last"),
    [
        ({"text": "文"}, Kind.TEXT, ("", "文")),
        ({"prompt": "问"}, Kind.PROMPT, ("问", "")),
        ({"response": "答"}, Kind.RESPONSE, ("", "答")),
        ({"prompt": "问", "response": "答"}, Kind.PAIR, ("问", "答")),
        ({"text": "答", "question": "问"}, Kind.PAIR, ("问", "答")),
        ({"messages": TALK}, Kind.MESSAGES, ("后问", "")),
        ({"messages": TALK[:1]}, Kind.PROMPT, ("先问", "")),
        ({"messages": TALK[:2]}, Kind.PAIR, ("先问", "先答")),
    ],
)
def test_judge_takes_each_kind(given: dict[str, Any], kind: Kind, last: tuple[str, str]) -> None:
    dialogue = asked(**given)

    assert (dialogue.kind, (dialogue.question, dialogue.response)) == (kind, last)
    assert len(dialogue.history) == (2 if kind is Kind.MESSAGES else 0)


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ({}, UsageError, "give TEXT, --messages, or --prompt"),
        ({"text": "文", "prompt": "问"}, UsageError, "give TEXT"),
        (
            {"messages": [{"role": "system", "content": "x"}, *TALK]},
            DataError,
            "--messages: message 0: the role system",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, DataError, "a tool's output"),
        ({"messages": []}, DataError, "at least one message"),
        ({"messages": TALK, "prompt": "问"}, UsageError, "give TEXT"),
    ],
)
def test_judge_says_what_it_cannot_take(given: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        asked(**given)


def test_submit_sends_each_row_as_the_kind_that_it_is() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "文"},
        {"id": "b", "prompt": "问"},
        {"id": "c", "question": "问", "response": "答"},
        {"id": "d", "response": "答", "kind": "response"},
        {"id": "e", "messages": TALK},
    ]
    source = io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())

    sent = list(_items(source, {}))

    assert [one.dialogue.kind for one in sent] == [Kind.TEXT, Kind.PROMPT, Kind.PAIR, Kind.RESPONSE, Kind.MESSAGES]
    assert sent[4].messages == TALK
    assert [one.custom_id for one in sent] == ["a", "b", "c", "d", "e"]
