"""One chunk through a judge whose guard refuses some items."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from infra.errors import GuardError
from schemas.guards import Mode
from schemas.messages import ChunkItem, JudgeChunk, Lane, VerdictChunk
from schemas.verdicts import Fingerprint, Outcome
from worker.device.types import DeviceRequest, DeviceResult, Scored
from worker.guards.base import PromptIds
from worker.guards.fake import FakeGuard
from worker.tasks import Judge


class Picky(FakeGuard):
    """Cannot ask about a text that says so."""

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:  # noqa: ARG002
        for item in items:
            if "no" in item.response:
                raise GuardError(f"item {item.seq} does not fit")
        return [[array("i", [1])] for _ in items]


def judged(*texts: str) -> VerdictChunk:
    chunk = JudgeChunk(
        run_id="r",
        chunk_no=0,
        lane=Lane.BULK,
        guard="fake",
        mode=Mode.SCORE,
        enqueued_at=time.time(),
        items=tuple(ChunkItem(seq=seq, question="", response=text) for seq, text in enumerate(texts)),
    )
    published: list[VerdictChunk] = []

    def run(request: DeviceRequest) -> DeviceResult:
        assert request.prompts, "an empty request is no request"
        return DeviceResult([Scored((-0.1, -3.0)) for _ in request.prompts])

    device: Any = SimpleNamespace(run=run)
    board = MagicMock()
    board.take.return_value = SimpleNamespace(settled=False, cancelled=False, deliveries=1)
    fingerprint = Fingerprint(
        guard="fake", model="m", revision="r", prompt="p", mode=Mode.SCORE, dtype="none", engine="fake"
    )
    judge = Judge(
        guard=Picky(),
        lane=Lane.BULK,
        device=device,
        board=board,
        publish=published.append,
        fingerprints={Mode.SCORE: fingerprint},
        worker_id="w",
    )
    judge(chunk.model_dump_json())
    return published[0]


@pytest.mark.parametrize("texts", [("yes", "no", "yes"), ("no",), ("yes",)])
def test_an_item_that_cannot_be_asked_costs_only_itself(texts: tuple[str, ...]) -> None:
    verdicts = judged(*texts).verdicts

    for seq, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
        assert verdict.seq == seq
        assert verdict.outcome is (Outcome.DEAD if text == "no" else Outcome.SCORED)
        assert verdict.reason == (f"item {seq} does not fit" if text == "no" else None)
