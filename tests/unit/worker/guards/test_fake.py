"""The fake guard reads windows as real guards do."""

from __future__ import annotations

import math

from schemas.items import Label
from worker.guards.fake import FakeGuard


def test_the_worst_window_wins() -> None:
    safe, unsafe = (math.log(0.9), math.log(0.1)), (math.log(0.1), math.log(0.9))
    answers = [list(text.encode()) for text in ('{"答案": "安全"}', '{"答案": "不安全"}', "?")]

    assert FakeGuard().read_scores(0, [safe, unsafe]).label is Label.UNSAFE
    assert FakeGuard().read_ids(0, answers).label is Label.UNSAFE
    assert FakeGuard().read_ids(0, answers[::2]).reason
