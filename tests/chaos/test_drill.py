"""A drill of faults that soon pass, one of each kind: nothing lost, doubled, wrong or falsely dead, in time.

All other kinds, which last for several leases or need a disk of their own, are left to `make drill`.
"""

from __future__ import annotations

from pathlib import Path

from infra.servers.embedded import EmbeddedServers
from infra.servers.services import Services
from infra.settings import Settings
from libra_fleet.drill.drill import Drill, DrillOptions

QUICK = (
    *("device", "live-consumer", "bulk-consumer", "worker", "collector", "producer", "gateway", "machine", "pause"),
    *("flush", "valkey", "postgres", "cut-sessions", "clock-back"),
)


def test_a_fleet_survives_one_fault_of_each_quick_kind(tmp_path: Path, settings: Settings) -> None:
    options = DrillOptions(
        seed=10, faults=len(QUICK), items=1_000, round_items=500, lease_s=3.0, mix=dict.fromkeys(QUICK, 1)
    )
    with EmbeddedServers(tmp_path / "servers", keep=False) as urls:
        services = Services(settings, urls.redis_url, urls.database_url, embedded=True)
        report = Drill(services, tmp_path, options, state_dir=tmp_path / "servers").run()
        services.engine.dispose()

    assert report.breaches == ()
    assert {line.fault for line in report.faults} == set(QUICK)
    assert report.items == report.settled >= 1_000
    assert (report.wrong_items, report.false_deaths) == (0, 0)
    assert report.worst_recovery_s <= 13
