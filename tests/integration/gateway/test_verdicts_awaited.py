"""Waiting for verdicts: no notice is missed, and a missed one costs a second, not the verdict."""

from __future__ import annotations

import asyncio
import threading

import pytest

from infra.ledger import intake, settlement
from infra.ledger.submissions import Submission, accept_submitted
from infra.servers.services import Services
from producer.gateway import verdicts_awaited
from producer.gateway.verdicts_awaited import AwaitedVerdicts, ItemRef
from schemas.items import Label
from schemas.messages import Lane
from schemas.verdicts import Verdict
from tests.support.make import items, spec
from tests.support.settling import settle_pending


def accepted(services: Services) -> ItemRef:
    run_id = intake.create_run(services.engine, spec(lane=Lane.LIVE))
    (item,) = items(1)
    accept_submitted(services.engine, run_id, spec(lane=Lane.LIVE), [[item]], {item.id: Submission("acme")})
    return ItemRef(run_id, 0)


def test_a_notice_that_comes_before_its_item_is_expected_is_not_missed(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()
    listening = threading.Event()

    def noted(*arguments: object) -> dict[int, Verdict]:
        found = verdict_of(*arguments)  # type: ignore[arg-type]
        read.set()
        return found

    def heard(self: AwaitedVerdicts, channel: object) -> dict[str, set[int]]:
        listening.set()
        return hear(self, channel)  # type: ignore[arg-type]

    verdict_of, hear = settlement.verdict_of, AwaitedVerdicts._heard
    monkeypatch.setattr(settlement, "verdict_of", noted)
    monkeypatch.setattr(AwaitedVerdicts, "_heard", heard)
    monkeypatch.setattr(verdicts_awaited, "_LOOK_EVERY_S", 3_600)

    async def scenario() -> Verdict:
        awaited = AwaitedVerdicts(services.engine, services.coordination)
        awaited.start()
        place = accepted(services)
        awaited.foresee([place])
        assert listening.wait(10)
        settle_pending(services, label=Label.UNSAFE)
        assert read.wait(10), "the loop is held up here, as it is by a burst of requests"
        try:
            return await asyncio.wait_for(awaited.expect(place), 10)
        finally:
            awaited.stop()

    assert asyncio.run(scenario()).label is Label.UNSAFE


def test_a_verdict_whose_notice_was_lost_is_found_by_looking(services: Services) -> None:
    async def scenario() -> tuple[Verdict, int]:
        awaited = AwaitedVerdicts(services.engine, services.coordination)
        place = accepted(services)
        settle_pending(services)
        awaited.start()
        verdict = await asyncio.wait_for(awaited.expect(place), 10)
        awaited.stop()
        return verdict, awaited.count

    verdict, left = asyncio.run(scenario())
    assert (verdict.label, left) == (Label.SAFE, 0)
