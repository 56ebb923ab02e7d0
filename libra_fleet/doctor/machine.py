"""This machine: versions of packages, free disk space, open files, devices and their memory, the guard's checkpoint."""

from __future__ import annotations

import platform
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NamedTuple

from infra.errors import DeviceError, GuardError, UsageError
from infra.guard_catalogue import GUARDS
from libra_fleet.doctor import Finding, error, good, graded, warning
from schemas.guards import Family, GuardCard, Mode
from worker.device.inventory import Device, Examination, Listing, auto_dtype, choose_devices, examine, list_devices
from worker.device.versions import FLOORS, numbers_of
from worker.guards.adapter import read_adapter
from worker.guards.location import parts_of
from worker.guards.registry import BUNDLED, cached_checkpoint, load_guard, resolve_adapter, resolve_checkpoint
from worker.guards.weights import Weights, check_config, read_weights

_GIB: Final = 2**30
_CONTEXT_BYTES: Final = int(0.7 * _GIB)
"""CUDA's context and its libraries' workspaces, which no model can do without."""
_BEYOND_ITS_NAME: Final = 1.09
"""Parameters of a model to those in its name, at most."""
_SPARE_SHARE: Final = 1.1
_SPARE_BYTES: Final = int(1.5 * _GIB)
"""Memory needed besides the weights: its context, activations of a batch, fragments. An estimate: a batch that
does not fit is halved, so that little room costs speed before it costs the start."""


class _Range(NamedTuple):
    """Versions from the oldest that pyproject.toml allows up to, but not including, the first untested one."""

    oldest: str
    untested: str
    extra: str = ""


TESTED: Final = {
    "python": _Range("3.11", "3.14"),
    "celery": _Range("5.7", "5.8"),
    "kombu": _Range("5.7", "5.8"),
    "redis": _Range("6", "9"),
    "sqlalchemy": _Range("2.0.36", "2.2"),
    "psycopg": _Range("3.2", "4"),
    "pydantic": _Range("2.11", "3"),
    "torch": _Range(FLOORS["torch"].oldest, "3", "worker"),
    "transformers": _Range(FLOORS["transformers"].oldest, "6", "worker"),
    "tokenizers": _Range("0.22", "0.24", "worker"),
    "safetensors": _Range("0.5", "0.9", "worker"),
    "accelerate": _Range("1.10", "2", "worker"),
}


def installed_version(name: str) -> str | None:
    """The version of a package, or of Python itself; None where it is not installed."""
    try:
        return platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        return None


def check_versions(installed: Callable[[str], str | None] = installed_version) -> Iterator[Finding]:
    """A finding for every version outside its tested range, and one for all that lie within."""
    fine, missing = [], []
    for name, tested in TESTED.items():
        found = installed(name)
        wanted = f"{name}>={tested.oldest},<{tested.untested}"
        do = "install another Python and make a new venv" if name == "python" else f"pip install '{wanted}'"
        if found is None and tested.extra:
            missing.append(name)
        elif found is None:
            yield error("versions", f"{name} is not installed", why="nothing runs without it", do=do)
        elif numbers_of(found) < numbers_of(tested.oldest):
            what = f"{name} {found} is older than {tested.oldest}"
            why = FLOORS[name].why if name in FLOORS else "it lacks something that is used here"
            yield error("versions", what, why=why, do=do)
        elif numbers_of(found) >= numbers_of(tested.untested):
            what = f"{name} {found} is newer than the tested versions (below {tested.untested})"
            yield warning("versions", what, why="it may behave differently where it matters", do=do)
        else:
            fine.append(f"{name} {found}")
    if missing:
        fine.append(f"without {', '.join(missing)}: this machine can submit and collect, but not judge")
    yield good("versions", ", ".join(fine))


def check_disk(state_dir: Path, free_bytes: Callable[[Path], int] | None = None) -> Iterator[Finding]:
    """A finding on the free space for the state folder: the embedded servers' data, logs, budgets."""
    place = next(folder for folder in (state_dir, *state_dir.parents) if folder.is_dir())
    free = free_bytes(place) if free_bytes else shutil.disk_usage(place).free
    what = f"{free / _GIB:,.1f} GiB are free on the disk of the state folder ({state_dir})"
    yield graded(
        "disk",
        free,
        what,
        few=2 * _GIB,
        enough=10 * _GIB,
        why="a full disk stops Postgres and Redis, and with them everything else",
        do="free some space, run libra data purge --older-than 30d, or set LIBRA_STATE_DIR to another disk",
    )


def check_files() -> Iterator[Finding]:
    """A finding on the number of files and connections a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield graded(
        "files",
        soft,
        f"a process may open {soft:,} files",
        few=256,
        enough=1024,
        why="a gateway needs one for each connection; beyond the limit it refuses callers",
        do=f"ulimit -n {min(65_536, hard) if hard > 0 else 65_536} before the start, or LimitNOFILE= in its unit",
    )


def _processor() -> Device:
    """Memory as /proc/meminfo has it; unknown (0) elsewhere."""
    described = Path("/proc/meminfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return Device("cpu", "processor", kilobytes.get("MemTotal", 0) << 10, kilobytes.get("MemAvailable", 0) << 10)


def check_devices(
    wanted: str,
    guard: str,
    location: str | None,
    *,
    visible: str | None,
    listing: Listing | None = None,
    examined: Callable[[Sequence[str | None]], list[Examination]] | None = None,
) -> Iterator[Finding]:
    """Findings on devices that are missing or unusable, and on the room that the guard's weights have on each.

    What a worker would refuse is refused here, by the same functions (`worker.device.inventory`).
    """
    found = list_devices() if listing is None else listing
    examined = examined or examine
    try:
        chosen = choose_devices(wanted, visible=visible, listing=found, examined=examined)
    except (UsageError, DeviceError) as problem:
        yield error(
            "devices", str(problem), why="a worker refuses to start with it", do="nvidia-smi -L lists the devices"
        )
        return
    if found.trouble and wanted == "all":
        yield warning(
            "devices",
            found.trouble,
            why="a device that is not listed is not used",
            do="nvidia-smi, and dmesg | grep -i nvrm",
        )
    card = GUARDS.get(guard)
    is_fake = card is not None and card.family is Family.FAKE
    seen = [Examination()] * len(chosen) if is_fake or chosen == ["cpu"] else examined(chosen)
    usable = [(_device(name, one, found), one) for name, one in zip(chosen, seen, strict=True) if not one.unusable]
    for name, one in zip(chosen, seen, strict=True):
        if one.unusable:
            yield error(
                "devices",
                f"device {name}: {one.unusable}",
                why="a worker judges on its other devices, and does not start where this is the only one",
                do="what the sentence says; --devices names the others",
            )
    if usable:
        named = [f"{one.id}: {one.name}, {one.total_bytes / _GIB:,.0f} GiB" for one, _ in usable]
        yield good("devices", ", ".join(named))
    if not is_fake:
        yield from _memory(usable, guard, location)


def _device(name: str, seen: Examination, found: Listing) -> Device:
    """A usable device as torch sees it; its memory as nvidia-smi does where torch did not say."""
    if name == "cpu":
        return _processor()
    listed = next((device for device in found.devices if device.id == name), Device(name, "", 0, 0))
    return listed._replace(
        name=", ".join(seen.names) or listed.name,
        total_bytes=seen.total_bytes or listed.total_bytes,
        free_bytes=seen.free_bytes or listed.free_bytes,
    )


def _memory(devices: Sequence[tuple[Device, Examination]], guard: str, location: str | None) -> Iterator[Finding]:
    size = parameters(guard, location)
    if size is None:
        yield warning(
            "device memory",
            f"the memory that {guard} takes is not known: neither its name nor a checkpoint here says it",
            why="only loading it shows if it fits",
            do=f"libra fleet worker --guard {guard} downloads it; then run libra fleet doctor again",
        )
        return
    # Qwen2.5's 7B has 7.6 billion.
    by_name = _checkpoint_here(guard, location, GUARDS.get(guard)) is None
    for device, seen in devices:
        dtype = "float32" if device.id == "cpu" else auto_dtype(seen.capability)
        weights = size * (4 if dtype == "float32" else 2)
        need = int(weights * _SPARE_SHARE) + _SPARE_BYTES
        what = f"{guard}: {size / 1e9:.2g} billion parameters in {dtype}"
        most = int(weights * _BEYOND_ITS_NAME) if by_name else weights
        beside = "" if device.id == "cpu" else " and CUDA's own 0.7 GiB"
        if device.total_bytes and most + (_CONTEXT_BYTES if beside else 0) > device.total_bytes:
            in_fact = f" by its name, up to {most / _GIB:,.1f} GiB in fact" if by_name else ""
            yield error(
                "device memory",
                f"{what} are {weights / _GIB:,.1f} GiB{in_fact}; device {device.id} ({device.name}) has "
                f"{device.total_bytes / _GIB:,.1f} GiB",
                why=f"the weights alone{beside} do not fit: its worker ends while loading",
                do="take a smaller guard (libra guards), or spread it over several with --devices-per-worker",
            )
        elif device.total_bytes and need > device.free_bytes:
            yield warning(
                "device memory",
                f"{what} need about {need / _GIB:,.1f} GiB, device {device.id} has {device.free_bytes / _GIB:,.1f} GiB "
                "free",
                why="batches are halved until they fit, or the worker ends while loading",
                do="see what else uses its memory (nvidia-smi, or free -h), or take a smaller guard",
            )
        else:
            yield good("device memory", f"{what} need about {need / _GIB:,.1f} GiB on device {device.id}")


def parameters(guard: str, location: str | None) -> int | None:
    """Parameters of a guard: counted if its checkpoint is on this machine, else by its name; None: unknown."""
    card = GUARDS.get(guard)
    if card and card.family is Family.GPT_OSS_SAFEGUARD:
        return None  # its experts come in 4 bits, and the memory they take depends on the kernels that are there
    folder = _checkpoint_here(guard, location, card)
    if folder is not None:
        try:
            return read_weights(folder).parameters
        except (GuardError, OSError):
            return None
    return None if card is None or location else card.nominal_parameters


def _checkpoint_here(guard: str, location: str | None, card: GuardCard | None) -> Path | None:
    if location is None and guard in BUNDLED:
        return BUNDLED[guard]
    base = parts_of(location).base if location else ""
    if base and Path(base).expanduser().is_dir():
        return Path(base).expanduser()
    cached = cached_checkpoint(card) if card and location is None and card.hub_id else None
    return Path(cached) if cached else None


def check_checkpoint(guard: str, location: str | None, family: str | None = None) -> Iterator[Finding]:
    """A finding on the guard's checkpoint: on this machine, whole and readable. Nothing is downloaded."""
    card = GUARDS.get(guard)
    if card is None and location is None:
        yield error(
            "checkpoint",
            f"no guard is named {guard!r}",
            why="a worker refuses to start with it",
            do="libra guards lists them",
        )
        return
    if card and card.family is Family.FAKE:
        yield good("checkpoint", "the fake guard needs none")
        return
    folder = _checkpoint_here(guard, location, card)
    adapter = parts_of(location).adapter if location else None
    if folder is not None and adapter and not Path(adapter).expanduser().is_dir():
        location, folder = adapter, None  # what is not here is the adapter
    if folder is None:
        source = location or (card and card.hub_id)
        is_path = location is not None and (location.startswith((".", "/", "~")) or location.count("/") != 1)
        found = error if is_path else warning
        yield found(
            "checkpoint",
            f"the checkpoint of {guard} ({source}) is not on this machine",
            why="its worker cannot load it" if is_path else "its worker downloads it first, which takes long or fails",
            do=f"ls {source}" if is_path else f"hf download {source}",
        )
        return
    try:
        resolve_checkpoint(guard, location or str(folder))
        weights, depth = _examined(folder, guard, location, family)
    except (GuardError, ValueError, OSError) as problem:
        yield error(
            "checkpoint",
            f"the checkpoint of {guard} cannot be loaded: {problem}",
            why="its worker refuses to start with it (exit code 5)",
            do="what the end of that sentence says, then run libra fleet doctor again",
        )
        return
    yield good("checkpoint", f"{guard}: {len(weights.files)} safetensors in {folder}, {depth}")


def _examined(folder: Path, guard: str, location: str | None, family: str | None) -> tuple[Weights, str]:
    """What the headers say, and how far they could be compared with the model."""
    weights = read_weights(folder)
    classifies = Mode.CLASSIFY in load_guard(guard, location or str(folder), family=family).modes
    place = resolve_adapter(guard, location)
    adapter = read_adapter(place, classifies=classifies) if place else None
    if installed_version("torch") is None or installed_version("transformers") is None:
        check_config(folder, weights, classifies=classifies)
        return weights, "not compared with the model's own keys: torch and transformers are not installed here"
    from worker.device.engines.fit import check_fit  # noqa: PLC0415 - torch takes seconds

    card = GUARDS.get(guard)
    if card and card.needs_remote_code and location is None:
        return weights, "not compared with the model's own keys: it brings its own code"
    fits = "which fit its config.json"
    return check_fit(folder, adapter, classifies=classifies), f"{fits}; {place} fits them" if adapter else fits
