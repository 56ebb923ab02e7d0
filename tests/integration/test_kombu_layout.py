"""What we write into kombu's keys is what kombu and Celery themselves would write."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from kombu.transport import virtual
from kombu.transport.virtual import Message

from infra.broker.app import JUDGE, VERDICTS, connect_redis, make_app, queue_of
from infra.broker.queues import task_message, vetting_transport
from infra.ledger import intake
from infra.servers.services import Services
from schemas.messages import JudgeChunk, Lane
from tests.support.make import items, spec, verdicts_for
from worker.consumer.deliveries import Deliveries, holder_of

QUEUE = queue_of("fake", Lane.BULK)


@pytest.fixture
def client(services: Services) -> redis.Redis:
    return connect_redis(services.redis_url)


def test_a_task_message_is_the_one_that_celery_sends(services: Services, client: redis.Redis) -> None:
    with make_app(services.redis_url, services.settings) as app:
        options = {"queue": QUEUE, "task_id": "r/0/1", "argsrepr": "-", "kwargsrepr": "-", "ignore_result": True}
        app.send_task(JUDGE, args=["判断"], headers={"enqueued_at": 1.5}, **options)
    (theirs,) = map(json.loads, client.lrange(f"libra:{QUEUE}", 0, -1))

    ours = json.loads(task_message(JUDGE, "判断", queue=QUEUE, task_id="r/0/1", enqueued_at=1.5))

    for message in (ours, theirs):
        for name in ("delivery_tag", "reply_to", "argsrepr", "kwargsrepr"):  # no two alike, or read by nobody
            message["properties"].pop(name, None)
    left_out = set(theirs["headers"]) - set(ours["headers"])
    assert left_out == {"shadow", "group_index", "origin", "replaced_task_nesting", "stamped_headers", "stamps"}
    assert ours["headers"] == {name: value for name, value in theirs["headers"].items() if name not in left_out}
    assert {**ours, "headers": None} == {**theirs, "headers": None}


def one_chunk(services: Services) -> JudgeChunk:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [items(2)])
    return chunk


class Channel:
    def decode_body(self, body: str, encoding: str) -> str:  # noqa: ARG002 - its signature
        return body


def test_a_finished_chunk_leaves_its_verdicts_and_nothing_else(services: Services, client: redis.Redis) -> None:
    deliveries = Deliveries(services.coordination, queue=QUEUE, worker_id="w")
    chunk = one_chunk(services)
    raw = task_message(JUDGE, chunk.model_dump_json(), queue=QUEUE, task_id=f"{chunk.chunk_id}/1")
    message = Message(json.loads(raw), channel=Channel())

    deliveries.note(message, message.delivery_tag)
    assert json.loads(str(client.hget("libra:unacked", message.delivery_tag))) == [json.loads(raw), "", QUEUE]
    assert services.coordination.leases.held(QUEUE) == [chunk.chunk_id]
    with deliveries.in_hand(chunk, message.delivery_tag) as delivery:
        assert delivery[:3] == (1, False, False)
        deliveries.finish(verdicts_for(chunk), message.delivery_tag, {})

    assert services.coordination.queues.judged() == {chunk.chunk_id}
    assert not client.exists("libra:unacked", "libra:unacked_index", f"libra:{QUEUE}")
    assert services.coordination.leases.held(QUEUE) == []
    assert [deliveries.is_acknowledged(message.delivery_tag) for _ in range(2)] == [True, False]


def test_a_chunk_that_fails_is_given_back_by_its_holder(services: Services, client: redis.Redis) -> None:
    deliveries = Deliveries(services.coordination, queue=QUEUE, worker_id="w")
    chunk = one_chunk(services)
    raw = task_message(JUDGE, chunk.model_dump_json(), queue=QUEUE, task_id=f"{chunk.chunk_id}/1")
    message = Message(json.loads(raw), channel=Channel())
    deliveries.note(message, message.delivery_tag)

    assert services.coordination.give_back(QUEUE, holder_of("w", os.getpid())) == 1

    assert services.coordination.queues.queued("fake", Lane.BULK) == [chunk.chunk_id]
    assert not client.exists("libra:unacked", "libra:unacked_index")


@contextmanager
def collecting(services: Services) -> Iterator[virtual.Channel]:
    """A collector's channel, closed in the end, as where the collector stops or loses its broker."""
    app = make_app(services.redis_url, services.settings, records_unacked=False)
    with app, app.connection_for_read() as connection:
        connection.transport_cls = vetting_transport(connection.get_transport_cls(), lambda *_: None)
        yield connection.default_channel


def test_what_a_collector_holds_goes_back_onto_its_queue_from_its_memory(
    services: Services, client: redis.Redis
) -> None:
    chunk = one_chunk(services)
    services.publisher.settle(verdicts_for(chunk))
    (before,) = map(json.loads, client.lrange(f"libra:{VERDICTS}", 0, -1))

    with collecting(services) as channel:
        message = channel.basic_get(VERDICTS)
        assert not client.exists(f"libra:{VERDICTS}", "libra:unacked", "libra:unacked_index")

    (after,) = map(json.loads, client.lrange(f"libra:{VERDICTS}", 0, -1))
    assert message.payload[0] == [verdicts_for(chunk).model_dump_json()]
    assert {**after, "redelivered": None} == {**before, "redelivered": None}


def test_what_cannot_go_back_is_written_nowhere(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stock kombu pickles such messages, which are user text, into a file of the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for chunk in (one_chunk(services), one_chunk(services)):
        services.publisher.settle(verdicts_for(chunk))
    tries = []

    def refuse(*_: object) -> None:
        tries.append(1)
        raise redis.ConnectionError

    with collecting(services) as channel:
        assert channel.basic_get(VERDICTS)
        assert channel.basic_get(VERDICTS)
        monkeypatch.setattr(channel, "_put", refuse)

    assert tries == [1]
    assert list(tmp_path.iterdir()) == []
