"""Announcements between processes of several versions."""

from __future__ import annotations

import json

from schemas.fleet import Announcement, ready

WORKER = Announcement(id="gpu-1-0", kind="worker", state="ready", guard="fake", items=0, busy_share=0.5)


def test_an_announcement_carries_what_is_known_and_nothing_else() -> None:
    assert json.loads(WORKER.to_wire()) == {
        "id": "gpu-1-0",
        "kind": "worker",
        "state": "ready",
        "guard": "fake",
        "items": 0,
        "busy_share": 0.5,
    }
    assert Announcement.from_wire(WORKER.to_wire()) == WORKER


def test_what_another_version_says_otherwise_is_passed_over() -> None:
    told = {**json.loads(WORKER.to_wire()), "kind": "judge", "items": "many", "fingerprints": ["x"], "later": {"a": 1}}

    read = Announcement.from_wire(json.dumps(told))

    assert read == WORKER.model_copy(update={"kind": "judge", "items": None})


def test_an_announcement_without_name_or_state_is_none() -> None:
    assert Announcement.from_wire('{"kind": "worker"}') is None
    assert Announcement.from_wire("no json") is None


def test_only_ready_processes_of_the_kind_and_guard_asked_for_are_found() -> None:
    others = [WORKER.model_copy(update=change) for change in ({"state": "draining"}, {"kind": "gateway"})]

    assert ready([WORKER, *others], "worker") == [WORKER]
    assert ready([WORKER, *others], "worker", "fake") == [WORKER]
    assert ready([WORKER, *others], "worker", "libra-tiny") == []
