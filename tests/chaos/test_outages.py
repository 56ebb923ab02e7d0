"""A server that is full, or away for longer: everybody waits with what they hold, and goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from infra.ledger import intake
from infra.ledger.audit import audit
from infra.ledger.runs import run_status
from infra.servers.embedded import EmbeddedServers
from infra.servers.places import Places
from infra.servers.services import Services
from infra.settings import Settings
from producer.intake.submit import seal, submit
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec
from tests.support.fleet import Fleet, fleet_on

ITEMS = 2_000
SPEC = RunSpec(guard="fake", source="chaos")


@pytest.fixture
def own_services(tmp_path: Path, settings: Settings) -> Iterator[Services]:
    """Servers of this test's own, because it fills or stops them."""
    with EmbeddedServers(tmp_path / "servers", keep=False) as urls:
        found = Services(settings, urls.redis_url, urls.database_url, embedded=True)
        yield found
        found.engine.dispose()


def texts(count: int) -> list[Item]:
    return [Item(id=str(number), response=f"文本 {number}") for number in range(count)]


def settled(services: Services, run_id: str) -> int:
    return run_status(services.engine, run_id).counts.settled


def assert_whole(services: Services, run_id: str) -> None:
    status, books = run_status(services.engine, run_id), audit(services.engine, run_id)
    assert (status.counts.accepted, status.counts.scored) == (ITEMS, ITEMS)
    assert [check for check in books.checks if check.breaches] == []


def test_a_full_broker_stops_nobody_for_good(own_services: Services, tmp_path: Path) -> None:
    client = redis.Redis.from_url(own_services.redis_url)
    run_id = intake.create_run(own_services.engine, SPEC)

    def produce() -> None:
        submit(own_services, run_id, SPEC, texts(ITEMS))
        seal(own_services, run_id)

    producer = threading.Thread(target=produce)
    with fleet_on(own_services, tmp_path) as fleet:
        fleet.start_collector()
        worker = fleet.start_worker("--fake-item-ms", "1")
        client.config_set("maxmemory", 1)
        producer.start()
        fleet.wait(lambda: run_status(own_services.engine, run_id).counts.accepted > 0)
        fleet.wait(lambda: "announce_failed" in fleet.logs())
        during = settled(own_services, run_id)

        client.config_set("maxmemory", 0)
        producer.join(60)
        fleet.wait(lambda: settled(own_services, run_id) > ITEMS // 4)
        client.config_set("maxmemory", 1)  # now with chunks in hand, verdicts on their way and acknowledgements due
        fleet.wait(lambda: "broker_waits" in fleet.logs())
        client.config_set("maxmemory", 0)
        fleet.wait(lambda: run_status(own_services.engine, run_id).state.ended)
        still_there = worker.poll() is None

    assert during == 0
    assert still_there, fleet.logs()  # a consumer that a full broker met while starting is replaced, the worker stays
    assert_whole(own_services, run_id)


@contextmanager
def postgres_down(folder: Path) -> Iterator[None]:
    """Postgres is killed, and its keeper cannot start it again before the context ends."""
    keeper = psutil.Process(int(Places(folder).keeper_lock.read_text()))
    server = next(child for child in keeper.children() if child.name().startswith("postgres"))
    keeper.suspend()
    server.kill()
    try:
        yield
    finally:
        keeper.send_signal(signal.SIGCONT)


def test_workers_go_on_while_postgres_is_down_and_nothing_is_judged_twice(
    own_services: Services, tmp_path: Path
) -> None:
    run_id = intake.create_run(own_services.engine, SPEC)
    submit(own_services, run_id, SPEC, texts(ITEMS))
    seal(own_services, run_id)
    with fleet_on(own_services, tmp_path, LIBRA_BULK_LEASE_S="3") as fleet:
        fleet.start_collector()
        fleet.start_worker("--fake-item-ms", "2")
        fleet.wait(lambda: settled(own_services, run_id) > 0)

        with postgres_down(tmp_path / "servers"):
            fleet.wait(lambda: _all_judged(fleet, own_services))

        fleet.wait(lambda: _ended(own_services, run_id))

    assert_whole(own_services, run_id)
    assert audit(own_services.engine, run_id).reattempted_chunks == 0


def _all_judged(fleet: Fleet, services: Services) -> bool:
    """The queue is empty and nobody holds anything; verdicts wait, for longer than a lease."""
    coordination = services.coordination
    waits = coordination.queues.length("fake", Lane.BULK) or coordination.leases.held("guard.fake.bulk")
    return not waits and fleet.logs().count("ledger_away") > 14


def _ended(services: Services, run_id: str) -> bool:
    try:
        return run_status(services.engine, run_id).state.ended
    except Exception as error:
        if "OperationalError" in type(error).__name__:
            return False
        raise
