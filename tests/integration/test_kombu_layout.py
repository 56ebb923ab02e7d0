"""What we write into kombu's keys is what kombu and Celery themselves would write."""

from __future__ import annotations

import json
import os

import pytest
import redis
from kombu.transport.virtual import Message

from infra.broker.app import JUDGE, connect_redis, make_app, queue_of
from infra.broker.queues import task_message
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
        assert delivery == (1, False, False)
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
