"""A worker of another fingerprint than a run's judges none of its chunks, burns no attempt, and ends them in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infra.broker.app import connect_redis, queue_of
from infra.ledger import intake, recovery, settlement
from infra.ledger.engine import autocommit
from infra.ledger.recovery import OverdueChunk
from infra.servers.services import Services
from schemas.fleet import Announcement
from schemas.guards import Mode, TextForm
from schemas.messages import JudgeChunk, Lane, VerdictChunk
from schemas.verdicts import Outcome
from tests.support.make import FINGERPRINT, items, spec, verdicts_for
from worker.consumer.deliveries import Deliveries
from worker.consumer.pins import Pins
from worker.consumer.tasks import Judge
from worker.device.protocol import DeviceRequest, DeviceResult, Scored
from worker.guards.fake import FakeGuard

OTHER = FINGERPRINT.model_copy(update={"dtype": "other"})
QUEUE = queue_of("fake", Lane.BULK)


class Device:
    """Counts what it is asked."""

    asked = 0

    def run(self, request: DeviceRequest, *, on_progress: Callable[[], None]) -> DeviceResult:  # noqa: ARG002
        self.asked += len(request.prompts)
        return DeviceResult(answers=[Scored((-0.1, -3.0)) for _ in request.prompts])


def judge_of(
    services: Services, fingerprint: Any, device: Device, *, patience_s: float = 100.0, unsure_s: float = 100.0
) -> Judge:
    deliveries = Deliveries(services.coordination, queue=QUEUE, worker_id=fingerprint.dtype)
    announced = services.coordination.presence.announced
    return Judge(
        guard=FakeGuard(),
        device=device,  # type: ignore[arg-type]
        deliveries=deliveries,
        fingerprints=dict.fromkeys(Mode, fingerprint),
        worker_id=fingerprint.dtype,
        pins=Pins(deliveries, announced, patience_s=patience_s, unsure_patience_s=unsure_s, pause_s=0),
    )


def begun(services: Services, *, lane: Lane = Lane.BULK) -> tuple[str, list[JudgeChunk]]:
    """A run of two windows, the first of them settled when the second is accepted."""
    run_id = intake.create_run(services.engine, spec(lane=lane))
    (first,) = intake.accept(services.engine, run_id, spec(lane=lane), [items(2)])
    settlement.settle(services.engine, verdicts_for(first))
    (second,) = intake.accept(services.engine, run_id, spec(lane=lane), [items(2, prefix="later")])
    return run_id, [first, second]


def queued(services: Services) -> list[str]:
    return services.coordination.queues.queued("fake", Lane.BULK)


def published(services: Services) -> int:
    return services.coordination.queues.verdicts_waiting()


def test_the_fingerprint_of_a_bulk_run_travels_with_what_is_enqueued_once_it_is_known(services: Services) -> None:
    run_id, (first, second) = begun(services)
    with autocommit(services.engine) as connection:
        again = recovery.take_up(connection, OverdueChunk(run_id, second.chunk_no, second.attempt))

    assert (first.pin, second.pin) == ("", FINGERPRINT.digest)
    assert again is not None
    assert (again.pin, again.attempt) == (FINGERPRINT.digest, 2)
    assert begun(services, lane=Lane.LIVE)[1][1].pin == ""


def test_a_worker_of_another_fingerprint_passes_a_chunk_on_and_the_right_one_judges_it(services: Services) -> None:
    _, (_, chunk) = begun(services)
    wrong, right = Device(), Device()

    for _ in range(5):
        judge_of(services, OTHER, wrong)(chunk.model_dump_json())

    assert (wrong.asked, published(services)) == (0, 0)
    assert queued(services) == [chunk.chunk_id] * 5
    assert services.coordination.leases.held(QUEUE) == []
    judge_of(services, FINGERPRINT, right)(chunk.model_dump_json())
    assert (right.asked, published(services)) == (2, 1)
    with connect_redis(services.redis_url) as client:
        counted = client.get(f"libra:board:deliveries:{chunk.chunk_id}.{chunk.nonce}")
    assert int(counted or 0) == 1, "passing on does not count"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("announced", "ends"),
    [
        ({}, True),
        ({"fingerprints": {"score": "0" * 16}}, True),
        ({"fingerprints": {"score": FINGERPRINT.digest}}, False),
        ({"fingerprints": {"score": FINGERPRINT.digest}, "guard": "another"}, True),
        ({"fingerprints": None}, False),
    ],
)
def test_what_no_announced_worker_may_take_ends_with_both_fingerprints_in_its_reason(
    services: Services, announced: dict[str, Any], ends: bool
) -> None:
    if announced:
        facts = {"id": "w", "kind": "worker", "state": "ready", "guard": "fake", **announced}
        services.coordination.presence.announce(Announcement(**facts))
    _, (_, chunk) = begun(services)
    judge = judge_of(services, OTHER, Device(), patience_s=-1)

    judge(chunk.model_dump_json())

    assert (published(services) == 1) is ends
    assert bool(queued(services)) is not ends
    if ends:
        (verdict, _) = _published(services).verdicts
        assert verdict.outcome is Outcome.DEAD
        assert FINGERPRINT.digest in str(verdict.reason)
        assert OTHER.digest in str(verdict.reason)


@pytest.mark.parametrize(("others", "ends"), [([], True), (["0" * 16], False)])
def test_where_workers_do_not_announce_the_runs_own_fingerprint_any_other_one_may_have_it(
    services: Services, others: list[str], ends: bool
) -> None:
    """The form of the texts changes a fingerprint, and workers announce the one of texts as they are."""
    for at, digest in enumerate([OTHER.digest, *others]):
        facts = {"id": f"w{at}", "kind": "worker", "state": "ready", "guard": "fake", "fingerprints": {"score": digest}}
        services.coordination.presence.announce(Announcement(**facts))  # type: ignore[arg-type]
    _, (_, chunk) = begun(services)
    formed = chunk.model_copy(
        update={"form": next(form for form in TextForm if form is not TextForm.AS_IS), "version": 4}
    )

    judge_of(services, OTHER, Device(), patience_s=-1)(formed.model_dump_json())

    assert (published(services) == 1) is ends
    assert bool(queued(services)) is not ends


def test_a_chunk_that_some_worker_may_have_the_fingerprint_for_is_not_passed_round_for_ever(services: Services) -> None:
    announced = {"id": "w", "kind": "worker", "state": "ready", "guard": "fake", "fingerprints": None}
    services.coordination.presence.announce(Announcement(**announced))  # type: ignore[arg-type]
    _, (_, chunk) = begun(services)

    judge_of(services, OTHER, Device(), patience_s=-1, unsure_s=-1)(chunk.model_dump_json())

    assert (published(services), queued(services)) == (1, [])


def test_a_chunk_is_passed_on_for_as_long_as_patience_says(services: Services) -> None:
    _, (_, chunk) = begun(services)

    judge_of(services, OTHER, Device(), patience_s=100)(chunk.model_dump_json())

    assert published(services) == 0
    assert queued(services) == [chunk.chunk_id]


def _published(services: Services) -> VerdictChunk:
    import base64
    import json

    from infra.broker.app import VERDICTS
    from schemas.messages import decode_chunk

    (message,) = connect_redis(services.redis_url).lrange(f"libra:{VERDICTS}", 0, -1)
    return decode_chunk(VerdictChunk, json.loads(base64.b64decode(json.loads(message)["body"]))[0][0])
