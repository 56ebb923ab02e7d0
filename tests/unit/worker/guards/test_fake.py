"""The fake guard reads windows as real guards do."""

from __future__ import annotations

import math
import multiprocessing
import signal

import pytest

from schemas.guards import Mode
from schemas.items import Label
from schemas.messages import ChunkItem
from worker.device.engines.fake import FakeEngine
from worker.guards.fake import FakeGuard


def test_the_worst_window_wins() -> None:
    safe, unsafe = (math.log(0.9), math.log(0.1)), (math.log(0.1), math.log(0.9))
    answers = [list(text.encode()) for text in ('{"答案": "安全"}', '{"答案": "不安全"}', "?")]

    assert FakeGuard().read_scores(0, [safe, unsafe]).label is Label.UNSAFE
    assert FakeGuard().read_ids(0, answers).label is Label.UNSAFE
    assert FakeGuard().read_ids(0, answers[::2]).reason


def test_markers_make_the_guard_raise_where_they_say() -> None:
    guard, engine = FakeGuard(), FakeEngine()
    marked = ChunkItem(seq=0, question="", response="text [[fake:raise-in-read]]")
    ((prompt,),) = guard.render([marked], Mode.SCORE)

    with pytest.raises(ValueError, match="asked to raise"):
        guard.render([marked.model_copy(update={"response": "[[fake:raise-in-render]]"})], Mode.SCORE)
    with pytest.raises(OverflowError):
        guard.read_scores(0, engine.score([prompt], guard.label_ids))
    with pytest.raises(ValueError, match="bytes"):
        guard.read_ids(0, engine.generate([prompt], max_new_tokens=32, stop_ids=()))


def test_the_marker_that_kills_a_consumer_kills_the_process_that_renders() -> None:
    item = ChunkItem(seq=0, question="", response="[[fake:kill-consumer]]")
    rendering = multiprocessing.get_context("fork").Process(target=FakeGuard().render, args=([item], Mode.SCORE))
    rendering.start()
    rendering.join()

    assert rendering.exitcode == -signal.SIGKILL
