"""A machine with GPUs that is not there: a torch and an nvidia-smi that say what a test wants them to say.

The torch is a package of its own that a child process imports in place of the real one. What it shows of each device
comes from a file, by what CUDA_VISIBLE_DEVICES names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GIB = 1 << 30
H100 = {"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0]}
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]

_TORCH = """
import json, os, signal, time
from pathlib import Path
from types import SimpleNamespace as _Names

_said = json.loads(Path(__file__).with_name("said.json").read_text())
_visible = os.environ.get("CUDA_VISIBLE_DEVICES")
_all = _said["devices"]
_seen = [_all[name] for name in (list(_all) if _visible is None else _visible.split(",")) if name in _all]
__version__ = _said["version"]
version = _Names(cuda=_said["cuda"], hip=None)
bfloat16, float16 = "bfloat16", "float16"
assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


class _Tensor:
    def __init__(self, value): self.value = value
    def __matmul__(self, other): return self
    def float(self): return self
    def sum(self): return self
    def item(self): return self.value


def ones(rows, columns, *, dtype, device):
    mine = _seen[int(device.partition(":")[2])]
    if mine.get("hangs"): time.sleep(3600)
    if mine.get("dies"): os.kill(os.getpid(), signal.SIGSEGV)
    if "error" in mine: raise RuntimeError(mine["error"])
    assert dtype == ("bfloat16" if mine["capability"] >= [8, 0] else "float16")
    return _Tensor(0.0 if mine.get("wrong") else float(rows * columns * rows))


def _init():
    if "error" in _said: raise RuntimeError(_said["error"])


def _properties(index):
    mine = _seen[index]
    return _Names(name=mine["name"], major=mine["capability"][0], minor=mine["capability"][1])


cuda = _Names(
    init=_init,
    device_count=lambda: len(_seen),
    get_arch_list=lambda: _said["architectures"],
    get_device_properties=_properties,
    mem_get_info=lambda index: (_seen[index].get("free", 79 << 30), _seen[index].get("total", 80 << 30)),
)
"""


def pretend_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, **said: Any) -> None:
    """Child processes import a torch that says this; `devices` by what CUDA_VISIBLE_DEVICES names."""
    package = folder / "pretended" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_TORCH)
    facts = {"version": "2.13.0+cu130", "cuda": "13.0", "architectures": ARCHITECTURES, "devices": {}}
    (package / "said.json").write_text(json.dumps({**facts, **said}))
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{root}")


def pretend_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """`nvidia-smi` is this shell script, and nothing else is on the path but sh's own tools."""
    programs = folder / "programs"
    programs.mkdir()
    program = programs / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
