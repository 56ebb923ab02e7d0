"""The page of the check for machines with a GPU. CI runs the check itself, on a CPU: `make gpu-check DRY=1`."""

from __future__ import annotations

from tests.gpu.__main__ import STAGES
from tests.gpu.report import page, sound


def test_what_does_not_hold_or_end_is_bold_and_makes_the_whole_unsound() -> None:
    good = {"stage": "facts", "t": 1, "check": "device 0 is usable", "ok": True}
    bad = {"stage": "memory", "t": 2, "check": "the budget comes back", "ok": False, "budget": 7}
    late = {"stage": "fleet", "ended": "over its limit", "s": 150, "limit_s": 150}

    assert sound([good])
    assert not sound([good, bad])
    assert not sound([good, late])
    shown = page([good, bad, late], dry=False)
    assert "| the budget comes back | memory | **NO** |" in shown
    assert "| fleet ends | fleet | **over its limit** |" in shown


def test_the_limits_of_all_stages_are_within_a_quarter_of_an_hour() -> None:
    assert sum(limit_s for _, limit_s in STAGES.values()) <= 660
