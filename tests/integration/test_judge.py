"""What a consumer makes of the device's answers."""

from __future__ import annotations

import math

from infra.broker.app import queue_of
from infra.ledger import intake
from infra.servers.services import Services
from schemas.guards import Mode
from schemas.messages import Lane, VerdictChunk
from schemas.verdicts import Outcome
from tests.support.make import FINGERPRINT, items, spec
from worker.consumer.tasks import Judge
from worker.device.protocol import DeviceRequest, DeviceResult, Scored
from worker.guards.fake import FakeGuard


class Device:
    """Gives the same scores to everything."""

    def __init__(self, *scores: tuple[float, float]) -> None:
        self._scores = scores

    def run(self, request: DeviceRequest) -> DeviceResult:
        return DeviceResult(answers=[Scored(self._scores[at]) for at, _ in enumerate(request.prompts)])


def judged(services: Services, device: Device, count: int) -> VerdictChunk:
    run_id = intake.create_run(services.engine, spec())
    (chunk,) = intake.accept(services.engine, run_id, spec(), [items(count)])
    published: list[VerdictChunk] = []
    judge = Judge(
        guard=FakeGuard(),
        lane=Lane.BULK,
        device=device,  # type: ignore[arg-type]
        coordination=services.coordination,
        publish=published.append,
        fingerprints=dict.fromkeys(Mode, FINGERPRINT),
        worker_id="w",
    )
    judge(chunk.model_dump_json())
    return published[0]


def test_scores_that_are_not_numbers_end_their_item_alone(services: Services) -> None:
    verdicts = judged(services, Device((-0.1, -3.0), (math.nan, math.nan)), 2).verdicts

    assert [verdict.outcome for verdict in verdicts] == [Outcome.SCORED, Outcome.DEAD]
    assert "NaN" in str(verdicts[1].reason)


def test_nothing_is_held_once_the_verdicts_are_out(services: Services) -> None:
    judged(services, Device((-0.1, -3.0)), 1)

    assert services.coordination.leases.held(queue_of("fake", Lane.BULK)) == []
