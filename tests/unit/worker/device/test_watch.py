"""A process that hangs is told from one that works, loads or was stopped together with its watcher."""

from __future__ import annotations

from pathlib import Path

from infra.process import wait_until
from worker.device.heartbeat import Heartbeat, Pulse, Watch, read_pulse

LOOK_S = 0.1


def watch() -> Watch:
    return Watch(silence_s=5, load_silence_s=20, load_s=100)


def first_finding(looks: list[tuple[float, Pulse]]) -> tuple[float, str] | None:
    watching = watch()
    return next(((now, how) for now, pulse in looks if (how := watching.hangs(now, pulse))), None)


def looks(seconds: int, pulse: Pulse, *, beats: bool = False) -> list[tuple[float, Pulse]]:
    times = [at * LOOK_S for at in range(int(seconds / LOOK_S))]
    return [(now, Pulse(pulse.deadline, beat_at=now if beats else 1.0, ready=pulse.ready)) for now in times]


def test_silence_while_idle_is_hanging_and_a_beat_is_not() -> None:
    found = first_finding(looks(60, Pulse(ready=True)))
    assert found is not None
    assert 5 < found[0] < 6
    assert first_finding(looks(60, Pulse(ready=True), beats=True)) is None


def test_while_loading_a_longer_silence_is_allowed_but_no_endless_load() -> None:
    silent, loading = first_finding(looks(60, Pulse())), first_finding(looks(200, Pulse(), beats=True))
    assert silent is not None
    assert 20 < silent[0] < 21
    assert loading is not None
    assert 100 < loading[0] < 101


def test_a_batch_past_its_deadline_is_hanging_though_the_process_beats() -> None:
    found = first_finding(looks(60, Pulse(deadline=30.0, ready=True), beats=True))
    assert found is not None
    assert 30 < found[0] < 31


def test_who_was_stopped_together_with_its_watcher_is_left_alone() -> None:
    watching = watch()
    before = Pulse(deadline=30.0, beat_at=10.0, ready=True)
    assert watching.hangs(10.0, before) is None
    assert watching.hangs(10_000.0, before) is None
    assert watching.hangs(10_000.1, Pulse(deadline=30.0, beat_at=10_000.0, ready=True)) is None


def test_a_heartbeat_shows_life_from_loading_on_and_stops_when_its_process_is_not_well(tmp_path: Path) -> None:
    well = [True]
    heartbeat = Heartbeat(tmp_path / "pulse")
    heartbeat.keep_beating(lambda: well[0])
    assert wait_until(lambda: read_pulse(tmp_path / "pulse").beat_at > 0, timeout_s=10)
    assert not read_pulse(tmp_path / "pulse").ready
    heartbeat.ready()
    assert read_pulse(tmp_path / "pulse").ready
