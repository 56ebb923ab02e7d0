"""What the board reads out of a queue may have been written by anybody."""

from __future__ import annotations

import pytest

from infra.broker.queues import enqueued_at


def test_the_enqueue_time_is_read_from_the_header() -> None:
    assert enqueued_at('{"headers": {"enqueued_at": 12.5}}') == 12.5


@pytest.mark.parametrize(
    "message",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"headers": []}',
        '{"headers": {"enqueued_at": "x"}}',
        '{"headers": {"enqueued_at": {}}}',
        '{"headers": {"enqueued_at": NaN}}',
        '{"headers": {"enqueued_at": 1e999}}',
        "[" * 100000,
        '{"headers": {"enqueued_at": 1' + "0" * 400 + "}}",
    ],
)
def test_a_message_that_nobody_here_wrote_overtakes_nothing(message: str) -> None:
    assert enqueued_at(message) == 0.0
