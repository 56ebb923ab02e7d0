"""`libra fleet up`: a whole fleet from one command, kept running, ended in order."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from infra.ledger import intake
from infra.ledger.runs import run_status
from infra.process import wait_until
from infra.servers.services import Services
from producer.intake.submit import seal, submit
from tests.support.cli import Cli
from tests.support.make import items, spec

WAIT_S = 60.0


@pytest.fixture
def cli(tmp_path: Path, services: Services) -> Cli:
    """Commands on this test's servers."""
    services.engine  # noqa: B018 - migrated
    return Cli(
        tmp_path,
        LIBRA_REDIS_URL=services.redis_url,
        LIBRA_DATABASE_URL=services.database_url,
        LIBRA_STATE_DIR=str(tmp_path / "state"),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_up_runs_a_fleet_restarts_what_dies_says_so_to_a_second_one_and_drains(cli: Cli, services: Services) -> None:
    port = _free_port()
    said = cli.folder / "said.log"
    with said.open("w") as output:
        process = cli.start("up", "--guard", "fake", "--devices", "cpu", "--port", str(port), stderr=output)

    def announced(kind: str) -> list[int]:
        return [process.pid or 0 for process in services.coordination.presence.announced() if process.kind == kind]

    def wait(what: str) -> None:
        assert wait_until(lambda: what in said.read_text() or process.poll() is not None, timeout_s=WAIT_S)
        assert process.poll() is None, said.read_text()

    try:
        wait("everything is ready")
        kinds = ("collector", "worker", "gateway", "webhooks")
        assert [len(announced(kind)) for kind in kinds] == [1, 1, 1, 1]
        assert all(process.version for process in services.coordination.presence.announced())

        second = cli("up", "--guard", "fake")
        assert second.returncode == 2
        assert f"process {process.pid}" in second.stderr
        assert f"gateway http://127.0.0.1:{port}" in second.stderr

        (first_collector,) = announced("collector")
        os.kill(first_collector, signal.SIGKILL)
        wait("collector ended with exit code -9; again in 0.5 s")
        assert wait_until(lambda: len(set(announced("collector")) - {first_collector}) == 1, timeout_s=WAIT_S)

        run_id = intake.create_run(services.engine, spec())
        submit(services, run_id, spec(), items(100))
        seal(services, run_id)
        assert wait_until(lambda: run_status(services.engine, run_id).state.ended, timeout_s=WAIT_S)

        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(WAIT_S) == 0, said.read_text()
        assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert said.read_text().index("gateway drains") < said.read_text().index("worker drains")
        assert said.read_text().rstrip().endswith("everything has ended")
    finally:
        if process.poll() is None:
            process.kill()
