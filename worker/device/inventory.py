"""The CUDA devices of this machine: which there are, which of them a worker takes, and whether they can be used.

`libra fleet worker` and `libra fleet doctor` both ask here, so that they say the same. Knows no torch: what only torch
can tell is asked in a child process with a limit (`worker.device.probe`), for a lost device hangs whoever asks it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.errors import DeviceError, UsageError
from infra.log import get_logger
from infra.process import python_module
from infra.settings import child_environment

log = get_logger(__name__)

NVIDIA_SMI_S: Final = 20.0
"""A healthy nvidia-smi answers in one or two; with a device that fell off the bus it never does."""
PROBE_S: Final = 120.0
"""Importing torch and starting CUDA takes five to twenty seconds, on a busy machine more."""
_KILLED_S: Final = 1.0
"""A killed process is gone within this time, unless its driver holds it."""
_ORDER: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""CUDA's own order is the fastest first; nvidia-smi's indexes are these."""
_BFLOAT16_FROM: Final = (8, 0)
"""Compute capability from which bfloat16 is computed, not imitated."""
_HIDES_ALL: Final = frozenset({"-1", "none", "void", "nodevfiles"})
_QUERY: Final = "index,uuid,name,memory.total,memory.free,mig.mode.current"
_NO_DEVICES: Final = "No devices were found"
_ON_CPU: Final = "--devices cpu judges on the processor"


class Device(NamedTuple):
    """A CUDA device or a MIG slice of one; or the processor with the machine's memory.

    `id` is what CUDA_VISIBLE_DEVICES takes: an index in PCI order, or a slice's UUID. `gpu` is the index of the whole
    GPU. A memory of 0 bytes is not known.
    """

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    uuid: str = ""
    gpu: str = ""


class Listing(NamedTuple):
    """What nvidia-smi lists. `trouble` says why there may be devices besides."""

    devices: tuple[Device, ...] = ()
    trouble: str = ""


class Examination(NamedTuple):
    """What torch made of a group of devices. `unusable` is the reason why no guard runs there, or "".

    `capability` is the lowest compute capability among them; the sizes are those of the smallest.
    """

    unusable: str = ""
    names: tuple[str, ...] = ()
    capability: tuple[int, ...] = ()
    total_bytes: int = 0
    free_bytes: int = 0


def list_devices(dev: Path = Path("/dev")) -> Listing:
    """The machine's CUDA devices by nvidia-smi, MIG slices in place of the GPUs that are cut into them."""
    nodes = sorted(path.name for path in dev.glob("nvidia[0-9]*"))
    program = shutil.which("nvidia-smi")
    if program is None:
        return Listing(trouble=f"{', '.join(nodes)} exist and nvidia-smi is not installed" if nodes else "")
    listed = _run([program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"])
    if listed is None:
        return Listing(trouble=f"nvidia-smi gave no answer within {NVIDIA_SMI_S:g} s: a device may be lost")
    code, output, complaint = listed
    rows = [[part.strip() for part in line.split(",")] for line in output.splitlines()]
    gpus = [row for row in rows if len(row) == _QUERY.count(",") + 1 and row[0].isdecimal()]
    trouble = ""
    if code and not (_NO_DEVICES in output + complaint and not nodes):
        reason = (complaint.strip() or output.strip() or f"exit code {code}").splitlines()[0]
        trouble = f"nvidia-smi fails: {reason[:200]}"
    elif len(gpus) < len(nodes) and not code:
        trouble = f"nvidia-smi lists {len(gpus)} of {len(nodes)} devices"
    slices = _slices(program) if any(row[5] == "Enabled" for row in gpus) else {}
    devices: list[Device] = []
    for index, uuid, name, total, free, mig in gpus:
        if mig == "Enabled":
            devices += slices.get(index, [])
            if not slices.get(index):
                trouble = trouble or f"device {index} is in MIG mode and has no slices (nvidia-smi mig -lgi)"
        else:
            devices.append(Device(index, name, _mebibytes(total), _mebibytes(free), uuid, index))
    return Listing(tuple(devices), trouble)


def choose_devices(
    wanted: str,
    *,
    per_worker: int = 1,
    visible: str | None = None,
    listing: Listing | None = None,
    examined: Callable[[Sequence[str | None]], list[Examination]] | None = None,
) -> list[str]:
    """Device groups from `all`, `cpu` or a list such as `0,1`; each group is "cpu" or a value of CUDA_VISIBLE_DEVICES.

    `all` means every device that `visible` (CUDA_VISIBLE_DEVICES) leaves: the CPU only where there is none or all are
    hidden. As with torch, an index counts within `visible`; without that it is nvidia-smi's, and the index of a GPU
    that is cut into MIG slices means all of them. One model is spread over `per_worker` devices.

    Raises:
        UsageError: not a device list, not there, named twice, or not divisible by `per_worker`.
        DeviceError: `all`, and devices that are there cannot be listed.
    """
    if wanted == "cpu":
        return ["cpu"]
    shown = _shown(visible)
    if wanted == "all" and shown == []:
        log.info("devices_hidden", cuda_visible_devices=visible)
        return ["cpu"]
    found = list_devices() if listing is None else listing
    seen = _seen(found, shown)
    if wanted == "all":
        if found.trouble and found.devices:
            log.error("devices_missing", reason=found.trouble)
        chosen = seen or _without_nvidia_smi(found, examined or examine)
        if not chosen:
            return ["cpu"]
    else:
        chosen = [device for part in wanted.split(",") for device in _named(part.strip(), wanted, found, shown, seen)]
    return _grouped(chosen, per_worker)


def auto_dtype(capability: Sequence[int]) -> str:
    """The type of --dtype auto on a CUDA device: below Ampere bfloat16 is imitated, and slow. () is not known."""
    return "float16" if capability and tuple(capability) < _BFLOAT16_FROM else "bfloat16"


class Examining:
    """A child process that computes on some devices (a value of CUDA_VISIBLE_DEVICES; None: as it is)."""

    def __init__(self, group: str | None, *, limit_s: float = PROBE_S) -> None:
        changes = _ORDER if group is None else {**_ORDER, "CUDA_VISIBLE_DEVICES": group}
        self._limit_s = limit_s
        self._child = _Command(python_module("worker.device.probe"), limit_s, child_environment(None, **changes))

    def poll(self, wait_s: float = 0.0) -> Examination | None:
        """What it found; None while it has not ended, within its limit."""
        if not self._child.has_ended(wait_s):
            return None
        if self._child.code is None:
            return Examination(f"torch gave no answer within {self._limit_s:g} s: the device hangs, or is lost")
        output, complaint = self._child.words()
        try:
            said: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        except (ValueError, IndexError):
            last = (complaint.strip() or "no reason given").splitlines()[-1]
            return Examination(f"torch died with code {self._child.code} on it: {last[:200]}")
        devices: list[dict[str, Any]] = said.get("devices", [])
        return Examination(
            unusable=said.get("unusable", ""),
            names=tuple(device["name"] for device in devices),
            capability=min((tuple(device["capability"]) for device in devices), default=()),
            total_bytes=min((device["total_bytes"] for device in devices), default=0),
            free_bytes=min((device["free_bytes"] for device in devices), default=0),
        )


def examine(groups: Sequence[str | None], *, limit_s: float = PROBE_S) -> list[Examination]:
    """Examine groups of devices, all at the same time, and wait for what was found."""
    running = [Examining(group, limit_s=limit_s) for group in groups]
    return [one.poll(limit_s) or Examination("it was not examined") for one in running]


def _shown(visible: str | None) -> list[str] | None:
    """The parts of CUDA_VISIBLE_DEVICES up to the first that hides the rest, as CUDA reads it; None: not set."""
    if visible is None:
        return None
    shown: list[str] = []
    for part in visible.replace(" ", "").split(","):
        if not part or part.lower() in _HIDES_ALL:
            break
        if not _is_name(part):
            raise UsageError(f"CUDA_VISIBLE_DEVICES={visible!r}: {part!r} is no index, GPU-… or MIG-…")
        shown.append(part)
    return shown


def _seen(found: Listing, shown: Sequence[str] | None) -> list[str]:
    """The devices that are listed and shown, as CUDA_VISIBLE_DEVICES takes them."""
    if shown is None:
        return [device.id for device in found.devices]
    seen: list[str] = []
    for part in shown:
        matching = _matching(part, found)
        if not matching and found.devices and not found.trouble:
            raise UsageError(f"CUDA_VISIBLE_DEVICES names device {part}; there are {_known(found)}")
        seen += matching or [part]
    return seen


def _named(part: str, wanted: str, found: Listing, shown: Sequence[str] | None, seen: Sequence[str]) -> list[str]:
    """The devices that a part of --devices means."""
    name = part.removeprefix("cuda:")
    if not _is_name(name):
        raise UsageError(f"--devices {wanted!r}: expected all, cpu, or indexes such as 0,1")
    if shown is not None:
        if not name.isdecimal():
            matching = [device for device in _matching(name, found) or [name] if device in seen]
        else:
            matching = [seen[int(name)]] if int(name) < len(seen) else []
        if not matching:
            raise UsageError(f"there is no device {name}: CUDA_VISIBLE_DEVICES leaves {', '.join(seen) or 'none'}")
        return matching
    matching = _matching(name, found)
    if not matching and not found.trouble:
        raise UsageError(f"there is no device {name}; there are {_known(found)}")
    return matching or [name]


def _matching(name: str, found: Listing) -> list[str]:
    """By index, by UUID, or by the beginning of one, as CUDA allows; a cut GPU is all of its slices."""
    if name.isdecimal():
        return [device.id for device in found.devices if name in (device.gpu, device.id)]
    return [device.id for device in found.devices if device.id.startswith(name) or device.uuid.startswith(name)]


def _is_name(part: str) -> bool:
    return part.isdecimal() or part.startswith(("GPU-", "MIG-"))


def _known(found: Listing) -> str:
    return ", ".join(device.id for device in found.devices) or "none"


def _without_nvidia_smi(found: Listing, examined: Callable[[Sequence[str | None]], list[Examination]]) -> list[str]:
    """Devices that are there though nvidia-smi cannot list them, as torch counts them."""
    if not found.trouble:
        return []
    (seen,) = examined([None])
    if seen.unusable:
        raise DeviceError(f"{found.trouble}; {seen.unusable}. {_ON_CPU}")
    log.warning("devices_counted_by_torch", reason=found.trouble, devices=len(seen.names))
    return [str(index) for index in range(len(seen.names))]


def _grouped(chosen: Sequence[str], per_worker: int) -> list[str]:
    twice = {device for device in chosen if chosen.count(device) > 1}
    if twice:
        raise UsageError(f"device {', '.join(sorted(twice))} is named twice")
    if per_worker > 1 and any(device.startswith("MIG-") for device in chosen):
        raise UsageError("a model cannot be spread over MIG slices: CUDA shows a process one slice")
    if len(chosen) % per_worker:
        raise UsageError(f"{len(chosen)} devices cannot be shared out {per_worker} to a worker")
    return [",".join(chosen[start : start + per_worker]) for start in range(0, len(chosen), per_worker)]


def _slices(program: str) -> dict[str, list[Device]]:
    """MIG slices by their GPU's index, from `nvidia-smi -L`; a slice's name holds its memory (1g.10gb)."""
    listed = _run([program, "-L"])
    slices: dict[str, list[Device]] = {}
    gpu = ""
    for line in listed[1].splitlines() if listed else []:
        if whole := re.match(r"GPU (\d+):", line):
            gpu = whole[1]
        elif part := re.match(r"\s+MIG (\S+)\s.*\(UUID: (MIG-[^)]+)\)", line):
            size = re.search(r"(\d+)gb", part[1])
            room = int(size[1]) << 30 if size else 0
            slices.setdefault(gpu, []).append(Device(part[2], f"MIG {part[1]}", room, room, part[2], gpu))
    return slices


def _mebibytes(text: str) -> int:
    """Bytes; 0 where a device that shares the processor's memory says [N/A]."""
    return int(text) << 20 if text.isdecimal() else 0


def _run(command: Sequence[str]) -> tuple[int, str, str] | None:
    """Exit code, output and complaints of nvidia-smi; None where it did not end in time."""
    asked = _Command(command, NVIDIA_SMI_S, None)
    asked.has_ended(NVIDIA_SMI_S + _KILLED_S)
    return None if asked.code is None else (asked.code, *asked.words())


class _Command:
    """A command with a limit. One that hangs in the driver cannot be killed, and is not waited for."""

    def __init__(self, command: Sequence[str], limit_s: float, environment: dict[str, str] | None) -> None:
        # Files, for whoever reads a pipe to its end waits for the last process that holds it.
        self._files = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115 - read after it ended
        self._deadline = time.monotonic() + limit_s
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._files[0], stderr=self._files[1], env=environment
        )
        self.code: int | None = None
        """None until it ended by itself."""

    def has_ended(self, wait_s: float) -> bool:
        """True once it ended, or was killed at its limit; waits for that up to `wait_s` seconds."""
        left_s = self._deadline - time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            self.code = self._process.wait(max(0.0, min(wait_s, left_s)))
            return True
        if time.monotonic() < self._deadline:
            return False
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED_S)
        return True

    def words(self) -> tuple[str, str]:
        """What it wrote to stdout and to stderr."""
        for file in self._files:
            file.seek(0)
        output, complaint = (file.read().decode(errors="replace") for file in self._files)
        return output, complaint
