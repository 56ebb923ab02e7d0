"""A worker that cannot load its model takes no work and says so."""

from __future__ import annotations

from pathlib import Path

from infra.errors import GuardError
from infra.ledger import intake
from infra.servers.services import Services
from producer.intake.submit import submit
from schemas.messages import Lane
from tests.support.fleet import Fleet
from tests.support.make import items, spec


def test_a_worker_that_cannot_load_takes_nothing_and_says_why(services: Services, fleet: Fleet, tmp_path: Path) -> None:
    order = spec(guard="mine")
    (tmp_path / "broken").mkdir()
    run_id = intake.create_run(services.engine, order)
    submit(services, run_id, order, items(4))

    worker = fleet.start("worker", "--guard", f"mine={tmp_path / 'broken'}", "--devices", "cpu")
    states = set()

    def ended() -> bool:
        states.update(process.state for process in fleet.announced())
        return worker.poll() is not None

    fleet.wait(ended)

    assert worker.returncode == GuardError.exit_code
    assert "broken lacks config.json" in fleet.logs()
    assert "ready" not in states
    assert fleet.announced() == []
    assert services.coordination.queues.length("mine", Lane.BULK) == 1
    assert services.coordination.leases.held("guard.mine.bulk") == []
