"""`python -m worker.device.probe`: one JSON line on whether torch can compute on the CUDA devices that it is shown.

Its caller gives it a process of its own and a limit, because a device that fell off the bus can hang or kill whoever
asks it. Knows nothing of guards and models.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final

from infra.process import die_with_parent
from worker.device.inventory import auto_dtype

_SIDE: Final = 64
_TOO_OLD: Final = re.compile(r"driver .* too old \(found version (\d+)\)", re.DOTALL)
_SEE: Final = "docs/gpu.md has the table"


class Unusable(Exception):  # noqa: N818 - it is the finding, not a failure of ours
    """Why no guard would run on the devices."""


def main() -> None:
    """Examine, and say what was found."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's own words go to stderr
    die_with_parent()
    facts: dict[str, Any] = {"devices": []}
    try:
        examine(facts)
    except Unusable as reason:
        facts["unusable"] = str(reason)
    except Exception as error:  # noqa: BLE001 - whatever a broken driver makes of it is the finding
        facts["unusable"] = said(error)
    report.write(json.dumps(facts) + "\n")
    report.flush()
    # A broken CUDA context can hang the interpreter's own way out.
    os._exit(0)


def examine(facts: dict[str, Any]) -> None:
    """Note the torch build and each device that it sees.

    Raises:
        Unusable: no guard would run on them.
    """
    try:
        import torch  # noqa: PLC0415 - its absence is a finding
    except ImportError as error:
        raise Unusable(f"torch cannot be imported ({error}): pip install 'libra-fleet[worker]'") from error
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        raise Unusable(f"{build} is a build without CUDA: install a CUDA build of it ({_SEE})")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise Unusable(_no_driver(error, f"{build} (CUDA {torch.version.cuda})")) from error
    if torch.cuda.device_count() == 0:
        raise Unusable("CUDA shows no device: it is hidden, held by another container, or lost")
    architectures = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        device = _device(torch, index)
        facts["devices"].append(device)
        name, capability = device["name"], tuple(device["capability"])
        if not built_for(capability, architectures):
            version = ".".join(map(str, capability))
            raise Unusable(
                f"{build} is not built for {name} (compute capability {version}), only for "
                f"{', '.join(architectures)} ({_SEE})"
            )
        if not _multiplies(torch, index, capability):
            raise Unusable(f"{name} multiplies wrongly: see the kernel's log for Xid errors")


def built_for(capability: tuple[int, ...], architectures: list[str]) -> bool:
    """Whether code for one of torch's architectures (sm_80, sm_90a, compute_90) runs on a device.

    Compiled code runs on its major version from its minor version on, portable code on everything later; a letter at
    the end ties it to that very device. An empty list is not known, and counts as fine.
    """
    if not architectures or not any(name.startswith(("sm_", "compute_")) for name in architectures):
        return True
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
        if not digits.isdecimal():
            continue
        built = divmod(int(digits), 10)
        if digits != number:
            runs = built == capability
        elif kind == "compute":
            runs = built <= capability
        else:
            runs = built[0] == capability[0] and built[1] <= capability[1]
        if runs:
            return True
    return False


def said(error: BaseException) -> str:
    """An error's first line, with its type."""
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{type(error).__name__}: {first}"[:300]


def _no_driver(error: BaseException, build: str) -> str:
    if found := _TOO_OLD.search(str(error)):
        number = int(found[1])
        return (
            f"the NVIDIA driver is too old for {build}: it serves CUDA {number // 1000}.{number % 1000 // 10} at most; "
            f"install a newer driver, or torch for that CUDA ({_SEE})"
        )
    return f"CUDA does not start with {build}: {said(error)}"


def _device(torch: Any, index: int) -> dict[str, Any]:  # noqa: ANN401 - the module, imported late
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": str(properties.name),
        "capability": [int(properties.major), int(properties.minor)],
        "total_bytes": int(total),
        "free_bytes": int(free),
    }


def _multiplies(torch: Any, index: int, capability: tuple[int, ...]) -> bool:  # noqa: ANN401
    """One product of ones, in the type that guards run in: every element is the side's length."""
    dtype = getattr(torch, auto_dtype(capability))
    ones = torch.ones(_SIDE, _SIDE, dtype=dtype, device=f"cuda:{index}")
    return bool((ones @ ones).float().sum().item() == _SIDE**3)


if __name__ == "__main__":
    main()
