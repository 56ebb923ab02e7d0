"""What a child process finds out about devices with a torch that is pretended, and how its own end is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cuda import ARCHITECTURES, H100, pretend_torch
from worker.device.inventory import Examination, examine
from worker.device.probe import built_for

T4 = {"name": "Tesla T4", "capability": [7, 5], "total": 15 << 30, "free": 14 << 30}
V100 = {"name": "Tesla V100", "capability": [7, 0]}


def of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str | None, **said: Any) -> Examination:
    pretend_torch(tmp_path, monkeypatch, **said)
    (found,) = examine([group], limit_s=60)
    return found


def test_a_sound_group_is_usable_and_says_its_least_capability_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = of(tmp_path, monkeypatch, "0,1", devices={"0": H100, "1": T4})

    assert found == Examination("", ("NVIDIA H100 80GB HBM3", "Tesla T4"), (7, 5), 15 << 30, 14 << 30)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"version": "2.13.0+cpu", "cuda": None}, r"torch 2.13.0\+cpu is a build without CUDA"),
        (
            {"error": "The NVIDIA driver on your system is too old (found version 12040). Please update"},
            r"driver is too old for torch 2.13.0\+cu130 \(CUDA 13.0\): it serves CUDA 12.4 at most",
        ),
        ({"error": "CUDA unknown error\nmore"}, "CUDA does not start with .*RuntimeError: CUDA unknown error$"),
        ({}, "CUDA shows no device"),
        ({"devices": {"0": V100}}, r"not built for Tesla V100 \(compute capability 7.0\), only for sm_75, "),
        ({"devices": {"0": {**H100, "wrong": True}}}, "multiplies wrongly"),
        ({"devices": {"0": {**H100, "error": "CUDA error: uncorrectable ECC error"}}}, "uncorrectable ECC"),
        ({"devices": {"0": {**H100, "dies": True}}}, "torch died with code -11"),
    ],
)
def test_each_way_of_being_unusable_has_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], reason: str
) -> None:
    import re

    assert re.search(reason, of(tmp_path, monkeypatch, "0", **said).unusable)


def test_a_device_that_hangs_costs_its_limit_and_no_other_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_torch(tmp_path, monkeypatch, devices={"0": H100, "1": {**H100, "hangs": True}})

    sound, lost = examine(["0", "1"], limit_s=5)

    assert sound.unusable == ""
    assert lost.unusable.startswith("torch gave no answer within 5 s")


def test_without_torch_the_reason_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parents[4]}")

    (found,) = examine(["0"], limit_s=60)

    assert "libra-fleet[worker]" in found.unusable


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ARCHITECTURES, True),
        ((8, 9), ARCHITECTURES, True),
        ((8, 0), ["sm_86"], False),
        ((7, 0), ARCHITECTURES, False),
        ((6, 1), ARCHITECTURES, False),
        ((12, 1), ARCHITECTURES, True),
        ((10, 3), ["sm_90a", "compute_100"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((13, 0), ["sm_120"], False),
        ((9, 0), [], True),
        ((11, 0), ["gfx90a"], True),
    ],
)
def test_code_runs_on_its_major_version_from_its_minor_one_on(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    assert built_for(capability, architectures) is runs
