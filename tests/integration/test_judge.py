"""What a consumer makes of the device's answers."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable

from infra.broker.app import VERDICTS, connect_redis, queue_of
from infra.ledger import intake
from infra.servers.services import Services
from schemas.guards import Mode
from schemas.messages import Lane, VerdictChunk, decode_chunk
from schemas.verdicts import Outcome
from tests.support.make import FINGERPRINT, items, spec
from worker.consumer.deliveries import Deliveries
from worker.consumer.tasks import Judge
from worker.device.protocol import DeviceRequest, DeviceResult, Scored
from worker.guards.fake import FakeGuard


class Device:
    """Gives the same scores to everything."""

    def __init__(self, *scores: tuple[float, float]) -> None:
        self._scores = scores

    def run(self, request: DeviceRequest, *, on_progress: Callable[[], None]) -> DeviceResult:  # noqa: ARG002
        return DeviceResult(answers=[Scored(self._scores[at]) for at, _ in enumerate(request.prompts)])


def judged(services: Services, device: Device, count: int) -> VerdictChunk:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [items(count)])
    queue = queue_of("fake", Lane.BULK)
    deliveries = Deliveries(services.coordination, queue=queue, worker_id="w")
    judge = Judge(
        guard=FakeGuard(),
        device=device,  # type: ignore[arg-type]
        deliveries=deliveries,
        fingerprints=dict.fromkeys(Mode, FINGERPRINT),
        worker_id="w",
    )
    judge(chunk.model_dump_json())
    (message,) = connect_redis(services.redis_url).lrange(f"libra:{VERDICTS}", 0, -1)
    return decode_chunk(VerdictChunk, json.loads(base64.b64decode(json.loads(message)["body"]))[0][0])


def test_scores_that_are_not_numbers_end_their_item_alone(services: Services) -> None:
    verdicts = judged(services, Device((-0.1, -3.0), (math.nan, math.nan)), 2).verdicts

    assert [verdict.outcome for verdict in verdicts] == [Outcome.SCORED, Outcome.DEAD]
    assert "NaN" in str(verdicts[1].reason)


def test_nothing_is_held_once_the_verdicts_are_out(services: Services) -> None:
    judged(services, Device((-0.1, -3.0)), 1)

    assert services.coordination.leases.held(queue_of("fake", Lane.BULK)) == []
