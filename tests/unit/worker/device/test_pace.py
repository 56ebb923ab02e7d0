"""A device's pace over the last minute, from looks at its pulse."""

from __future__ import annotations

import pytest

from worker.device.heartbeat import Pace, Pulse


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    for second in range(0, 301, 5):
        facts = pace.look(
            second, Pulse(busy_s=second * 0.5 if second <= 200 else 100 + (second - 200), items=2 * second)
        )

    assert facts["busy_share"] == pytest.approx(1.0)
    assert facts["items_per_s"] == pytest.approx(2.0)
    assert 60 <= facts["over_s"] <= 65


def test_nothing_is_said_at_the_first_look_nor_of_padding_while_nothing_ran() -> None:
    pace = Pace()

    assert pace.look(0, Pulse()) == {}
    assert "padding_share" not in pace.look(5, Pulse())
    assert pace.look(10, Pulse(tokens=75, padded_tokens=100, busy_s=1))["padding_share"] == 0.25


def test_a_new_device_process_starts_from_nothing() -> None:
    pace = Pace()
    pace.look(0, Pulse(items=0))
    pace.look(5, Pulse(items=1_000, busy_s=5))

    assert pace.look(10, Pulse(items=10, busy_s=1)) == {}
    assert pace.look(20, Pulse(items=110, busy_s=2))["items_per_s"] == 10
