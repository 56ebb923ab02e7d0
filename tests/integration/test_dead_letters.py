"""A fleet of mixed versions sends what it does not know to the dead-letter queue, and goes on with the rest."""

from __future__ import annotations

import json

import pytest
import redis

from infra.broker import dead_letters
from infra.broker.app import JUDGE, SETTLE, VERDICTS, make_app, queue_of
from infra.broker.dead_letters import DeadLetters
from infra.broker.queues import task_message, vetting_transport
from infra.ledger import intake
from infra.ledger.runs import run_status
from infra.servers.services import Services
from infra.settings import Settings
from producer.intake.submit import seal, submit
from schemas.messages import JudgeChunk, Lane, VerdictChunk
from tests.support.fleet import Fleet
from tests.support.make import items, spec, verdicts_for

QUEUE = queue_of("fake", Lane.BULK)


def test_a_consumers_channel_keeps_its_redis_client(redis_url: str, settings: Settings) -> None:
    with make_app(redis_url, settings).connection_for_read() as connection:
        connection.transport_cls = vetting_transport(connection.get_transport_cls(), lambda *_: None)
        channel = connection.default_channel

        assert channel._create_client() is channel._create_client()
        assert channel._create_client().ping()


def test_messages_of_a_newer_version_and_noise_go_to_the_dead_letter_queue(services: Services, fleet: Fleet) -> None:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [items(4)])
    newer = {
        **json.loads(chunk.model_dump_json()),
        "version": JudgeChunk.NEWEST + 1,
        "run_id": "newer",
        "colour": "blue",
    }
    verdicts = {**json.loads(verdicts_for(chunk).model_dump_json()), "version": VerdictChunk.NEWEST + 1}
    for queue, task, body, task_id in (
        (QUEUE, JUDGE, json.dumps(newer), "newer/0/1"),
        (VERDICTS, SETTLE, json.dumps(verdicts), "newer/0/1/v"),
        (QUEUE, "libra.unheard_of", "{}", "x"),
    ):
        message = task_message(task, body, queue=queue, task_id=task_id, enqueued_at=0.0)
        services.coordination.queues.push(queue, message)
    with redis.Redis.from_url(services.redis_url) as client:
        client.lpush(f"libra:{QUEUE}", "no message at all", "[" * 20_000)
    services.publisher.judge(chunk)
    submit(services, run_id, spec(), items(8))
    seal(services, run_id)

    fleet.start_collector()
    fleet.start_worker()
    fleet.wait(lambda: run_status(services.engine, run_id).state.ended)
    fleet.wait(lambda: len(services.coordination.dead_letters.newest_first()) == 5)

    reasons = sorted(entry["reason"] for entry in services.coordination.dead_letters.newest_first())
    newest = (VerdictChunk.NEWEST, JudgeChunk.NEWEST)
    newer_ones = [reason for reason in reasons if reason.startswith("message version")]
    assert newer_ones == [f"message version {known + 1}, this reader knows {known}" for known in newest], reasons
    assert reasons.count("not a message") == 2, reasons
    assert run_status(services.engine, run_id).counts.scored == 8
    assert "text number" not in fleet.logs()


def letters(services: Services) -> DeadLetters:
    return services.coordination.dead_letters


def test_parked_messages_are_bounded_in_memory_and_the_oldest_go_first(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_KEPT_BYTES", 2**20)
    for number in range(40):
        letters(services).put("q", f"reason {number}", "x" * 100_000)

    kept = letters(services).newest_first()
    assert [entry["reason"] for entry in kept] == [f"reason {number}" for number in range(39, 39 - len(kept), -1)]
    assert 5 <= len(kept) <= 11


def test_a_parked_message_larger_than_the_bound_is_kept_alone(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_KEPT_BYTES", 2**10)
    for number in range(3):
        letters(services).put("q", f"reason {number}", "x" * 100_000)

    assert [entry["reason"] for entry in letters(services).newest_first()] == ["reason 2"]


def test_a_parked_message_goes_after_its_time(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(dead_letters.time, "time", lambda: 1_000.0)
        letters(services).put("q", "old", "x")
    letters(services).put("q", "new", "x")

    assert [entry["reason"] for entry in letters(services).newest_first()] == ["new"]


def test_kept_verdicts_never_go_by_themselves_and_take_no_more_than_their_bound(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_KEPT_BYTES", 2**14)
    run_id = intake.create_run(services.engine, spec())
    chunks = intake.accept(services.engine, run_id, spec(), [items(16, prefix=f"{n}") for n in range(20)])

    taken = [chunk.chunk_id for chunk in chunks if letters(services).keep_verdicts(verdicts_for(chunk), "a reason")]

    assert letters(services).chunks_kept() == set(taken)
    assert 1 <= len(taken) < 20
