"""The live client alone with the servers: it waits for the ledger, whether or not anybody tells it to look."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from infra.broker.app import queue_of
from infra.coordination.store import CoordinationStore
from infra.errors import RunError, ServerError
from infra.ledger import settlement
from infra.ledger.runs import list_runs
from infra.process import wait_until
from infra.servers.services import Services
from producer.intake.live import LiveClient
from schemas.items import Item
from schemas.messages import JudgeChunk, Lane, decode_chunk
from tests.support.make import verdicts_for


def accepted(services: Services) -> int:
    return sum(run.counts.accepted for run in list_runs(services.engine))


def test_a_verdict_arrives_although_the_notice_of_it_was_lost(services: Services) -> None:
    client = LiveClient(services, guard="fake")
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(client.judge, f"文本 {number}") for number in range(3)]
        assert wait_until(lambda: accepted(services) == 3, timeout_s=20)
        assert wait_until(lambda: sum(len(chunk.items) for chunk in _queued(services)) == 3, timeout_s=20)
        for chunk in _queued(services):
            settlement.settle(services.engine, verdicts_for(chunk))

        assert [future.result(20).label for future in futures] == ["safe"] * 3
    client.close()


class _AwayAtFirst(Services):
    """Servers whose Redis cannot be reached at the first attempt."""

    attempts = 0

    @property
    def coordination(self) -> CoordinationStore:  # type: ignore[override]
        type(self).attempts += 1
        if self.attempts == 1:
            raise ServerError("Redis is away")
        return super().coordination


def test_a_client_that_began_while_redis_was_away_hears_of_verdicts_later(services: Services) -> None:
    away = _AwayAtFirst(services.settings, services.redis_url, services.database_url, embedded=True)
    client = LiveClient(away, guard="fake")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.judge, "文本")
        assert wait_until(lambda: len(_queued(services)) == 1, timeout_s=20)
        settlement.settle(services.engine, verdicts_for(_queued(services)[0]))

        assert future.result(20).label == "safe"
    assert _AwayAtFirst.attempts > 1
    client.close()
    away.engine.dispose()


def test_an_item_without_a_verdict_in_time_is_named_and_stays_accepted(services: Services) -> None:
    client = LiveClient(services, guard="fake")

    with pytest.raises(RunError, match="will still settle"):
        client.judge("文本", timeout_s=0.05)

    assert accepted(services) == 1
    client.close()


def test_a_client_whose_run_was_ended_goes_on_in_the_days_next(services: Services) -> None:
    client = LiveClient(services, guard="fake")
    (first,) = client.submit([Item(id="1", response="文本")])
    settlement.cancel(services.engine, first.run_id)

    (second,) = client.submit([Item(id="2", response="文本")])

    assert second.run_id != first.run_id
    client.close()


def _queued(services: Services) -> list[JudgeChunk]:
    """The chunks on the live lane, taken off it by nobody."""
    with redis.Redis.from_url(services.redis_url, decode_responses=True) as client:
        messages = client.lrange(f"libra:{queue_of('fake', Lane.LIVE)}", 0, -1)
    bodies = [json.loads(base64.b64decode(json.loads(message)["body"]))[0][0] for message in messages]
    return [decode_chunk(JudgeChunk, body) for body in bodies]
