"""A message in a queue may have been written by any program."""

from __future__ import annotations

import json

import pytest

from infra.broker.queues import Task, enqueued_at, is_message, task_id_of
from tests.support.kombu_channel import Channel


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
def test_a_message_of_another_program_overtakes_nothing(message: str) -> None:
    assert enqueued_at(message) == 0.0


def raw(tag: object) -> bytes:
    properties = {"delivery_info": {"exchange": "", "routing_key": "q"}, "delivery_tag": tag}
    kinds = {"content-type": "json", "content-encoding": "utf-8"}
    return json.dumps({"body": "e30=", "headers": {}, "properties": properties, **kinds}).encode()


def test_a_message_needs_a_tag_that_can_be_part_of_a_key() -> None:
    assert is_message(Channel(), raw("0f8fad5b"))
    assert not is_message(Channel(), raw("\ud800"))
    assert not is_message(Channel(), raw(None))


def test_a_task_id_can_always_be_part_of_a_key() -> None:
    assert task_id_of({"id": "r1/0/1"}) == "r1/0/1"
    assert Task.read({"id": "r1/0/3"}) == Task("r1/0", 3)
    assert Task.read({"id": "r1/0/3.ab"}) == Task("r1/0", 3, "ab")
    assert str(Task("r1/0", 3, "ab")) == "r1/0/3.ab"
    assert Task.read({"id": "x"}) is None
    assert Task.read({"id": "r1/0/" + "9" * 5_000}) == Task("r1/0", 1)
    assert Task.read({"id": "r1/0/\u00b2"}) == Task("r1/0", 1)
    task_id_of({"id": "\ud800/1/1"}).encode()
