"""This machine: room on its disks, files it may open, devices and their memory, the guard's checkpoint."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from infra.errors import GuardError, UsageError
from infra.guard_catalogue import GUARDS
from libra_fleet.doctor.finding import Finding, error, good, warning
from schemas.guards import Family, GuardCard
from worker.guards.registry import BUNDLED, cached_checkpoint, resolve_checkpoint
from worker.supervisor import choose_devices

_GIB: Final = 2**30
_ROOM: Final = (2 * _GIB, 10 * _GIB)
_FILES: Final = (256, 1024)
_SPARE_SHARE: Final = 1.1
_SPARE_BYTES: Final = int(1.5 * _GIB)
"""What a device needs beside the weights: its context, activations of a batch, fragments. An estimate: a batch that
does not fit is halved, so that little room costs speed before it costs the start."""
_LONGEST_HEADER: Final = 100 << 20


class Usage(Protocol):
    """A disk, as shutil.disk_usage has it."""

    @property
    def free(self) -> int:
        """Bytes."""


class Device(NamedTuple):
    """An accelerator, or the processor with the machine's memory."""

    id: str
    name: str
    total_bytes: int
    free_bytes: int


def check_disk(state_dir: Path, usage: Callable[[Path], Usage] = shutil.disk_usage) -> Iterator[Finding]:
    """Room where the state folder lies: the embedded servers' data, logs, budgets."""
    place = next(folder for folder in (state_dir, *state_dir.parents) if folder.is_dir())
    free = usage(place).free
    told = f"{free / _GIB:,.1f} GiB are free where the state folder lies ({state_dir})"
    if free >= _ROOM[1]:
        yield good("disk", told)
        return
    found = error if free < _ROOM[0] else warning
    yield found(
        "disk",
        told,
        why="a full disk stops Postgres and Redis, and with them everything",
        do="free some, libra purge --older-than 30d, or set LIBRA_STATE_DIR to a larger disk",
    )


def check_files() -> Iterator[Finding]:
    """How many files and connections a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _FILES[1]:
        yield good("files", f"a process may open {soft:,} files")
        return
    found = error if soft < _FILES[0] else warning
    yield found(
        "files",
        f"a process may open {soft:,} files",
        why="a gateway needs one for each connection; past the limit it refuses callers",
        do=f"ulimit -n {min(65_536, hard) if hard > 0 else 65_536} before the start, or LimitNOFILE= in its unit",
    )


def list_devices() -> list[Device]:
    """What nvidia-smi lists; the processor where it lists nothing."""
    program = shutil.which("nvidia-smi")
    fields = "--query-gpu=index,name,memory.total,memory.free"
    listed = (
        subprocess.run([program, fields, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False)
        if program
        else None
    )
    devices = []
    for line in listed.stdout.splitlines() if listed and listed.returncode == 0 else []:
        index, name, total, free = (part.strip() for part in line.split(","))
        if total.isdecimal() and free.isdecimal():
            devices.append(Device(index, name, int(total) << 20, int(free) << 20))
    return devices or [_processor()]


def _processor() -> Device:
    """Memory as /proc/meminfo has it; unknown (0) elsewhere."""
    described = Path("/proc/meminfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return Device("cpu", "processor", kilobytes.get("MemTotal", 0) << 10, kilobytes.get("MemAvailable", 0) << 10)


def check_devices(
    wanted: str, guard: str, location: str | None, *, visible: str | None, devices: list[Device] | None = None
) -> Iterator[Finding]:
    """Whether the devices are there and the guard's weights fit into each."""
    found = list_devices() if devices is None else devices
    known = {device.id: device for device in found}
    try:
        chosen = choose_devices(
            wanted, visible=visible, list_cuda=lambda: [device.id for device in found if device.id != "cpu"]
        )
    except UsageError as problem:
        yield error(
            "devices", str(problem), why="a worker does not start with it", do="nvidia-smi -L lists what there is"
        )
        return
    absent = [name for name in chosen if name.isdecimal() and name not in known]
    if absent:
        yield error(
            "devices",
            f"there is no device {', '.join(absent)}; there are {', '.join(known)}",
            why="its device process cannot load anything",
            do="nvidia-smi -L; libra worker --devices all takes what there is",
        )
    if set(chosen) == {"cpu"} and "cpu" not in known:
        known["cpu"] = _processor()
    mine = [known[name] for name in chosen if name in known]
    yield good("devices", ", ".join(f"{one.id}: {one.name}, {one.total_bytes / _GIB:,.0f} GiB" for one in mine))
    yield from _memory(mine, guard, location)


def _memory(devices: list[Device], guard: str, location: str | None) -> Iterator[Finding]:
    card = GUARDS.get(guard)
    if card and card.family is Family.FAKE:
        return
    for device in devices:
        width = 4 if device.id == "cpu" else 2  # float32 and bfloat16, as --dtype auto chooses
        size = parameters(guard, location)
        if size is None:
            yield warning(
                "device memory",
                f"how much memory {guard} takes is not known: neither its name nor a checkpoint here says it",
                why="whether it fits is found out by loading it",
                do=f"libra worker --guard {guard} downloads it; then ask again",
            )
            return
        weights = size * width
        need = int(weights * _SPARE_SHARE) + _SPARE_BYTES
        told = f"{guard}: {size / 1e9:.2g} billion parameters in {'float32' if width == 4 else 'bfloat16'}"
        if device.total_bytes and weights > device.total_bytes:
            yield error(
                "device memory",
                f"{told} are {weights / _GIB:,.1f} GiB, device {device.id} ({device.name}) has "
                f"{device.total_bytes / _GIB:,.1f} GiB",
                why="the weights alone do not fit: its worker ends while loading",
                do="a smaller guard (libra guards), or --devices-per-worker to spread it over several",
            )
        elif device.total_bytes and need > device.free_bytes:
            yield warning(
                "device memory",
                f"{told} need about {need / _GIB:,.1f} GiB, of which {device.free_bytes / _GIB:,.1f} GiB are free on "
                f"device {device.id}",
                why="batches are halved until they fit, or the worker ends while loading",
                do="see what else holds its memory (nvidia-smi, or free -h), or take a smaller guard",
            )
        else:
            yield good("device memory", f"{told} need about {need / _GIB:,.1f} GiB on device {device.id}")


def parameters(guard: str, location: str | None) -> int | None:
    """Parameters of a guard: counted where its checkpoint lies on this machine, else by its name; None: unknown."""
    card = GUARDS.get(guard)
    if card and card.family is Family.GPT_OSS_SAFEGUARD:
        return None  # its experts come in 4 bits, and what they take depends on the kernels that are there
    folder = _at_hand(guard, location, card)
    if folder is not None:
        try:
            return sum(_tensor_parameters(path) for path in folder.glob("*.safetensors"))
        except ValueError:
            return None
    return None if card is None or location else card.nominal_parameters


def _at_hand(guard: str, location: str | None, card: GuardCard | None) -> Path | None:
    if location is None and guard in BUNDLED:
        return BUNDLED[guard]
    if location and Path(location).expanduser().is_dir():
        return Path(location).expanduser()
    cached = cached_checkpoint(card) if card and location is None and card.hub_id else None
    return Path(cached) if cached else None


def check_checkpoint(guard: str, location: str | None) -> Iterator[Finding]:
    """Whether the guard's checkpoint lies on this machine, whole and readable. Nothing is downloaded."""
    card = GUARDS.get(guard)
    if card is None and location is None:
        yield error(
            "checkpoint",
            f"no guard is named {guard!r}",
            why="a worker does not start with it",
            do="libra guards lists them",
        )
        return
    if card and card.family is Family.FAKE:
        yield good("checkpoint", "the fake guard needs none")
        return
    folder = _at_hand(guard, location, card)
    if folder is None:
        is_path = location is not None and (location.startswith((".", "/", "~")) or location.count("/") != 1)
        found = error if is_path else warning
        yield found(
            "checkpoint",
            f"the checkpoint of {guard} ({location or (card and card.hub_id)}) is not on this machine",
            why="its worker cannot load it" if is_path else "its worker downloads it first, which takes long or fails",
            do=f"ls {location}" if is_path else f"hf download {location or (card and card.hub_id)}",
        )
        return
    try:
        resolve_checkpoint(guard, location or str(folder))
        tensors = {path.name: _tensor_parameters(path) for path in sorted(folder.glob("*.safetensors"))}
        _whole_index(folder, set(tensors))
    except (GuardError, ValueError, OSError) as problem:
        yield error(
            "checkpoint",
            f"the checkpoint of {guard} cannot be loaded: {problem}",
            why="its worker ends while loading",
            do="download it again, whole: a copy that was cut off looks like this",
        )
        return
    yield good("checkpoint", f"{guard}: {len(tensors)} safetensors in {folder}")


def _whole_index(folder: Path, files: set[str]) -> None:
    """See that no file is missing of those that the index names.

    Raises:
        ValueError: one is.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(named - files):
            raise ValueError(f"{', '.join(missing)} of its index are missing")


def _tensor_parameters(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header (u64 length, then JSON; the format's own spec).

    Raises:
        ValueError: the file is not whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path.name} is no safetensors file, or was cut off")
        header = json.loads(file.read(length))
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    end = max((entry["data_offsets"][1] for entry in tensors), default=0)
    if 8 + length + end != size:
        raise ValueError(f"{path.name} has {size:,} bytes, its header says {8 + length + end:,}")
    total = 0
    for entry in tensors:
        count = 1
        for extent in entry["shape"]:
            count *= extent
        total += count
    return total
