"""What the screen of `libra fleet up` takes from logs and from looks at the runs."""

from __future__ import annotations

import json
from pathlib import Path

from libra_fleet.machine.view import RunPace, Warnings, items_per_s
from schemas.fleet import Announcement, FleetSnapshot, OpenRun
from schemas.messages import Lane

RUN = OpenRun(
    id="r",
    name="nightly",
    guard="fake",
    lane=Lane.BULK,
    state="sealed",
    accepted=1_000,
    settled=0,
    pending=1_000,
    dead=0,
    expected=1_000,
)


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
    assert pace.look(0.0, FleetSnapshot(runs=(RUN,))) == {}
    assert pace.look(10.0, FleetSnapshot(runs=(RUN,))) == {}, "it does not move"

    moving = RUN.model_copy(update={"settled": 200, "pending": 800})
    assert pace.look(20.0, FleetSnapshot(runs=(moving,))) == {"r": 80.0}
    unsealed = moving.model_copy(update={"expected": None})
    assert pace.look(21.0, FleetSnapshot(runs=(unsealed,))) == {}, "nobody knows how much comes"
    assert pace.look(22.0, FleetSnapshot()) == {}


def test_the_rate_of_a_fleet_is_unknown_until_a_worker_knows_its_own() -> None:
    first = Announcement(id="a", kind="worker", guard="fake", state="ready")
    second = Announcement(id="b", kind="worker", guard="fake", state="ready", items_per_s=2.5)

    assert items_per_s(FleetSnapshot(announced=(first,))) is None
    assert items_per_s(FleetSnapshot(announced=(first, second))) == 2.5
