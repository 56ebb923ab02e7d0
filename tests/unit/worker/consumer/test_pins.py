"""How long a chunk of a run with another fingerprint is passed on, by who is announced."""

from __future__ import annotations

from typing import Any, cast

import pytest

from schemas.fleet import QUARANTINED, READY, Announcement
from schemas.guards import Mode
from schemas.messages import ChunkItem, JudgeChunk, Lane
from schemas.verdicts import Fingerprint
from worker.consumer.deliveries import Deliveries
from worker.consumer.pins import Pins

MINE = Fingerprint(guard="fake", model="m", revision="r", prompt="p", mode=Mode.SCORE, dtype="none", engine="fake")
CHUNK = JudgeChunk(
    run_id="r0123456789",
    chunk_no=0,
    guard="fake",
    mode=Mode.SCORE,
    lane=Lane.BULK,
    items=(ChunkItem(seq=0, question="", response="x"),),
    enqueued_at=0.0,
    pin="theirs",
)


class Passed:
    """Deliveries of a chunk that others have passed on for some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def count_pass(self, _: JudgeChunk) -> float:
        return self.seconds

    def pass_on(self, *_: object) -> None:
        pass


def ends(state: str, seconds: float) -> bool:
    announced: dict[str, Any] = {"id": "w", "kind": "worker", "guard": "fake", "fingerprints": {"score": "theirs"}}
    pins = Pins(
        cast("Deliveries", Passed(seconds)),
        lambda: [Announcement(state=state, **announced)],
        patience_s=10,
        unsure_patience_s=100,
        pause_s=0,
    )
    return pins.pass_on(CHUNK, None, MINE) is not None


@pytest.mark.parametrize(
    ("state", "seconds", "ended"), [(READY, 1e6, False), (QUARANTINED, 50, False), (QUARANTINED, 101, True)]
)
def test_a_worker_whose_device_failed_is_waited_for_but_not_for_ever(state: str, seconds: float, ended: bool) -> None:
    assert ends(state, seconds) is ended
