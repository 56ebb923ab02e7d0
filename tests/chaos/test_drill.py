"""A drill of ten faults, one of each kind: nothing lost, nothing doubled, recovered in time."""

from __future__ import annotations

from pathlib import Path

from infra.servers.embedded import EmbeddedServers
from infra.servers.services import Services
from infra.settings import Settings
from libra_fleet.drill.drill import Drill, DrillOptions
from libra_fleet.drill.faults import Fault


def test_a_fleet_survives_one_fault_of_each_kind(tmp_path: Path, settings: Settings) -> None:
    options = DrillOptions(seed=10, faults=len(Fault), items=1_000, round_items=500, lease_s=3.0)
    with EmbeddedServers(tmp_path / "servers", keep=False) as urls:
        services = Services(settings, urls.redis_url, urls.database_url, embedded=True)
        report = Drill(services, tmp_path, options, state_dir=tmp_path / "servers").run()
        services.engine.dispose()

    assert report.breaches == ()
    assert {line.fault for line in report.faults} == set(Fault)
    assert report.items == report.settled >= 1_000
    assert report.worst_recovery_s <= 13
