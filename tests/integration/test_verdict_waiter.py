"""Waiting for verdicts: a notice brings them at once, and a lost one costs a second, not the verdict."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.errors import ItemLostError
from infra.ledger import intake
from infra.ledger.intake import Submission, accept_submitted
from infra.servers.services import Services
from producer.intake import verdict_waiter
from producer.intake.verdict_waiter import ItemRef, VerdictWaiter
from schemas.items import Label
from schemas.messages import Lane
from tests.support.make import items, spec
from tests.support.settling import settle_pending

WAIT_S = 10


@pytest.fixture
def waiter(services: Services) -> Iterator[VerdictWaiter]:
    waiter = VerdictWaiter(services)
    yield waiter
    waiter.stop()


def accepted(services: Services, count: int = 1) -> list[ItemRef]:
    run_id = intake.create_run(services.engine, spec(lane=Lane.LIVE))
    batch = items(count)
    said = {item.id: Submission("acme") for item in batch}
    accept_submitted(services.engine, run_id, spec(lane=Lane.LIVE), [batch], said)
    return [ItemRef(run_id, seq) for seq in range(count)]


def test_a_notice_brings_all_verdicts_of_a_request_in_its_order(
    services: Services, waiter: VerdictWaiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict_waiter, "_LOOK_EVERY_S", WAIT_S)  # also how long `start` waits to be subscribed
    waiter.start()
    refs = accepted(services, 3)
    pending = waiter.expect(refs[::-1])
    settle_pending(services, label=Label.UNSAFE)

    assert [verdict.seq for verdict in pending.result.result(WAIT_S - 1)] == [2, 1, 0]
    assert waiter.count == 0


def test_a_verdict_whose_notice_was_lost_is_found_by_looking(services: Services, waiter: VerdictWaiter) -> None:
    (ref,) = accepted(services)
    settle_pending(services)
    waiter.start()
    pending = waiter.expect([ref])

    (verdict,) = pending.result.result(WAIT_S)
    assert (verdict.label, waiter.count) == (Label.SAFE, 0)


def test_two_who_wait_for_one_item_both_have_it_and_who_gave_up_is_forgotten(
    services: Services, waiter: VerdictWaiter
) -> None:
    (ref,) = accepted(services)
    first, second, gone = (waiter.expect([ref]) for _ in range(3))
    waiter.forget(gone)
    settle_pending(services)
    third = waiter.expect_settled([ref])

    assert [one.result.result(0) for one in (first, second)] == [third.result.result(0)] * 2
    assert not gone.result.done()
    assert waiter.count == 0


def test_who_waits_for_an_item_that_a_failover_lost_is_not_given_anothers_verdict(
    services: Services, waiter: VerdictWaiter
) -> None:
    """The promoted ledger has given its place to another item, through another gateway."""
    refs = accepted(services, 3)
    lost = waiter.expect(refs, ["item-0", "of-a-lost-commit", "of-another"])
    kept = waiter.expect(refs, ["item-0", "item-1", "item-2"])
    settle_pending(services)
    waiter.expect_settled(refs)

    with pytest.raises(ItemLostError, match="send it again"):
        lost.result.result(0)
    assert len(kept.result.result(0)) == 3
    assert waiter.count == 0
