"""The filter for Open WebUI, without a gateway: nothing passes but what a verdict lets pass."""

from __future__ import annotations

import asyncio
import io
from http.client import BadStatusLine, IncompleteRead, InvalidURL
from typing import Any

import pytest

from integrations.open_webui.libra_filter import BlockedError, Filter


def filter_whose_call(ends_in: object) -> Any:
    moderation: Any = Filter()  # type: ignore[no-untyped-call]

    def call(*_: object, **__: object) -> io.BytesIO:
        if isinstance(ends_in, Exception):
            raise ends_in
        assert isinstance(ends_in, bytes)
        return io.BytesIO(ends_in)

    moderation._open = call
    return moderation


@pytest.mark.parametrize(
    "ends_in",
    [OSError(), IncompleteRead(b""), BadStatusLine(""), InvalidURL(), b"", b"[]", b"null", b"{}", b'{"verdict": 1}'],
    ids=repr,
)
def test_no_failure_of_the_call_lets_a_prompt_or_an_answer_pass(ends_in: object) -> None:
    moderation = filter_whose_call(ends_in)

    with pytest.raises(BlockedError):
        asyncio.run(moderation.inlet({"messages": [{"role": "user", "content": "x"}]}))
    shown = asyncio.run(moderation.outlet({"messages": [{"role": "assistant", "content": "x"}]}))
    assert shown["messages"][-1]["content"] == moderation.valves.message


def test_a_verdict_that_is_true_passes() -> None:
    moderation = filter_whose_call(b'{"verdict": true}')
    body = {"messages": [{"role": "assistant", "content": "x"}]}

    assert asyncio.run(moderation.inlet(body)) == body
    assert asyncio.run(moderation.outlet(body))["messages"][-1]["content"] == "x"
