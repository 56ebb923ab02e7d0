"""A fleet behind a real pgbouncer in transaction mode, which has fewer sessions than clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from infra.ledger import intake
from infra.ledger.audit import audit
from infra.ledger.engine import open_ledger
from infra.ledger.runs import run_status
from infra.servers.services import Services
from infra.settings import Settings
from schemas.runs import RunState
from tests.support.fleet import fleet_on
from tests.support.make import items, spec
from tests.support.pgbouncer import PGBOUNCER, pooled

# In CI a missing pgbouncer is a failure: .ci/run installs it.
pytestmark = pytest.mark.skipif(
    PGBOUNCER is None and os.environ.get("CI") != "true",
    reason="no pgbouncer on this machine: apt-get install pgbouncer",
)

CHUNKS, PER_CHUNK = 60, 16


@pytest.fixture
def behind(
    settings: Settings, redis_url: str, ledger_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """Services whose ledger is behind the pooler."""
    with pooled(ledger_url, tmp_path_factory.mktemp("pgbouncer"), sessions=4) as url:
        found = Services(settings, redis_url, url, embedded=False)
        yield found
        found.engine.dispose()


def produce(services: Services) -> str:
    """A run, submitted by an engine of its own."""
    engine = open_ledger(services.database_url)
    run_id = intake.create_run(engine, spec())
    for number in range(CHUNKS):
        for chunk in intake.accept(engine, run_id, spec(), [items(PER_CHUNK, prefix=f"{number}")]):
            services.publisher.judge(chunk)
    if intake.seal(engine, run_id):
        services.publisher.finalize(run_id)
    engine.dispose()
    return run_id


@pytest.mark.slow
def test_two_producers_and_two_collectors_end_their_runs_behind_a_pooler(behind: Services, tmp_path: Path) -> None:
    with fleet_on(behind, tmp_path) as fleet:
        for _ in range(2):
            fleet.start_collector()
        fleet.start_worker()
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(produce, [behind] * 2))
        fleet.wait(lambda: all(run_status(behind.engine, run).state is RunState.COMPLETE for run in runs))
        assert "prepared statement" not in fleet.logs()

    for run_id in runs:
        books = audit(behind.engine, run_id)
        assert [check for check in books.checks if check.breaches] == []
        assert run_status(behind.engine, run_id).counts.scored == CHUNKS * PER_CHUNK


def test_statements_are_prepared_on_a_server_and_not_behind_a_pooler(behind: Services, ledger_url: str) -> None:
    prepares = []
    direct = open_ledger(ledger_url)
    for engine in (direct, behind.engine):
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
            prepares.append(connection.connection.driver_connection.prepare_threshold)  # type: ignore[union-attr]
    direct.dispose()

    assert prepares == [5, None]
