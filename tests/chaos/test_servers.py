"""The broker or the database goes away in the middle of a run: everybody waits, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from schemas.runs import RunSpec
from tests.support.fleet import Fleet, fleet_on

ITEMS = 6_000
SPEC = RunSpec(guard="fake", source="chaos")


@pytest.fixture
def own_services(tmp_path: Path, settings: Settings) -> Iterator[Services]:
    """Servers of this test's own, because it kills them."""
    with EmbeddedServers(tmp_path / "servers", keep=False) as urls:
        found = Services(settings, urls.redis_url, urls.database_url, embedded=True)
        yield found
        found.engine.dispose()


def server(folder: Path, program: str) -> psutil.Process:
    """A server below a state folder, by the keeper that started it."""
    keeper = psutil.Process(int(Places(folder).keeper_lock.read_text()))
    return next(child for child in keeper.children() if child.name().startswith(program))


def kill_valkey(folder: Path, services: Services) -> None:
    server(folder, "valkey").kill()


def kill_postgres(folder: Path, services: Services) -> None:
    server(folder, "postgres").kill()


def flush_valkey(folder: Path, services: Services) -> None:
    redis.Redis.from_url(services.redis_url).flushall()


@pytest.mark.parametrize("inject", [kill_valkey, kill_postgres, flush_valkey])
def test_a_run_survives_its_servers(
    tmp_path: Path, own_services: Services, inject: Callable[[Path, Services], None]
) -> None:
    with fleet_on(own_services, tmp_path) as fleet:
        _run_through(fleet, own_services, lambda: inject(tmp_path / "servers", own_services))


def _run_through(fleet: Fleet, services: Services, inject: Callable[[], None]) -> None:
    fleet.start_collector()
    fleet.start_worker("--fake-item-ms", "0.5")
    run_id = intake.create_run(services.engine, SPEC)
    submit(services, run_id, SPEC, [Item(id=str(number), response=f"文本 {number}") for number in range(ITEMS)])
    seal(services, run_id)
    fleet.wait(lambda: run_status(services.engine, run_id).counts.settled > ITEMS // 10)

    inject()

    fleet.wait(lambda: _ended(services, run_id), timeout_s=120)
    status, books = run_status(services.engine, run_id), audit(services.engine, run_id)
    assert (status.counts.scored, status.counts.dead) == (ITEMS, 0)
    assert [check for check in books.checks if check.breaches] == []


def _ended(services: Services, run_id: str) -> bool:
    try:
        return run_status(services.engine, run_id).state.ended
    except Exception as error:
        if "OperationalError" in type(error).__name__:
            return False  # the database is on its way back
        raise
