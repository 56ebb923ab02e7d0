"""The check for machines with a GPU, on this one: its stages end, and what they look at holds for toy shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.__main__ import STAGES
from tests.gpu.report import page, read, sound
from tests.support.fleet import ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_of_the_gpu_check_holds_on_a_cpu_with_toy_shapes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu", str(tmp_path / "out"), "--dry"]

    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    log = tmp_path / "out" / "log.txt"
    assert checked.returncode == 0, checked.stdout + (log.read_text(errors="replace")[-6000:] if log.is_file() else "")
    results = read(tmp_path / "out")
    assert [result["stage"] for result in results if "ended" in result] == list(STAGES)
    assert sum("check" in result for result in results) >= 15
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# GPU check, dry")
    assert "**NO**" not in report
    assert not (tmp_path / "out" / "models").exists(), "sixteen gigabytes on a real one"


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
