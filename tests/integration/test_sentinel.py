"""A fleet whose Redis is named by a sentinel, and which goes on when the primary is killed and the replica promoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.ledger import intake
from infra.ledger.audit import audit
from infra.ledger.runs import run_status
from infra.servers.services import Services
from infra.settings import Settings
from schemas.runs import RunState
from tests.support.fleet import fleet_on
from tests.support.make import items, spec
from tests.support.sentinels import replicated

CHUNKS, PER_CHUNK = 80, 16


@pytest.mark.slow
def test_a_run_ends_although_the_primary_dies_amid_it(settings: Settings, ledger_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with replicated(folder) as servers:
        services = Services(settings, servers.url, ledger_url, embedded=False)
        with fleet_on(services, tmp_path) as fleet:
            fleet.start_collector()
            fleet.start_worker("--fake-item-ms", "5")
            run_id = intake.create_run(services.engine, spec())
            for number in range(CHUNKS):
                for chunk in intake.accept(services.engine, run_id, spec(), [items(PER_CHUNK, prefix=f"{number}")]):
                    services.publisher.judge(chunk)
                if number == CHUNKS // 2:
                    fleet.wait(lambda: run_status(services.engine, run_id).counts.settled > 0)
                    servers.kill_primary()
            intake.seal(services.engine, run_id)
            fleet.wait(lambda: run_status(services.engine, run_id).state is RunState.COMPLETE, timeout_s=120)
        assert servers.failed_over()
        books = audit(services.engine, run_id)
        assert [check for check in books.checks if check.breaches] == []
        assert run_status(services.engine, run_id).counts.scored == CHUNKS * PER_CHUNK
        services.engine.dispose()
