"""What the screen of `libra up` takes from logs and from looks at the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from infra.fleet_status import FleetStatus, OpenRun, Worker
from libra_fleet.machine.watching import RunPace, Warnings, items_per_s
from schemas.messages import Lane

RUN = OpenRun("r", "nightly", "fake", Lane.BULK, "sealed", 1_000, 0, 1_000, 0, 1_000)


def test_only_warnings_added_since_the_start_are_shown_each_once_and_torn_lines_wait(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    old = {"level": "error", "event": "old"}
    fresh = {"level": "warning", "event": "broker_waits", "error": "full", "timestamp": "2026-11-24T18:01:02.5Z"}
    log.write_text(json.dumps(old) + "\n")
    warnings = Warnings({"worker": log, "gateway": tmp_path / "none.log"})

    with log.open("a") as file:
        file.write(json.dumps({"level": "info", "event": "ready"}) + "\nno json\n" + json.dumps(fresh)[:20])
        file.flush()
        assert warnings.look() == []
        file.write(json.dumps(fresh)[20:] + "\n")
    assert warnings.look() == ["worker: 18:01:02 broker_waits full"]
    assert warnings.look() == []
    assert list(warnings.last) == ["worker: 18:01:02 broker_waits full"]


def test_the_end_of_a_run_is_told_once_it_is_sealed_and_moves() -> None:
    pace = RunPace()
    assert pace.look(0.0, FleetStatus(runs=(RUN,))) == {}
    assert pace.look(10.0, FleetStatus(runs=(RUN,))) == {}, "it does not move"

    moving = replace(RUN, settled=200, pending=800)
    assert pace.look(20.0, FleetStatus(runs=(moving,))) == {"r": 80.0}
    assert pace.look(21.0, FleetStatus(runs=(replace(moving, expected=None),))) == {}, "nobody knows how much comes"
    assert pace.look(22.0, FleetStatus()) == {}


def test_the_rate_of_a_fleet_is_unknown_until_a_worker_knows_its_own() -> None:
    workers = (Worker("a", "fake", "ready"), Worker("b", "fake", "ready", items_per_s=2.5))

    assert items_per_s(FleetStatus(workers=workers[:1])) is None
    assert items_per_s(FleetStatus(workers=workers)) == 2.5
