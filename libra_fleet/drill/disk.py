"""A small file system for the servers of a drill, which it can fill without harm to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SIZE: Final = "1g"
"""Room for Postgres, and for a drill of some hundred thousand items."""


def can_mount() -> bool:
    """Whether this process may mount a file system: root on Linux, and not in a container that forbids it."""
    return sys.platform == "linux" and os.geteuid() == 0 and subprocess.call(_unshared("true")) == 0


@contextmanager
def small_disk(folder: Path, *, keep: bool) -> Iterator[bool]:
    """Mount a tmpfs at the folder for as long as the context lasts; False, and no effect, where that cannot be done.

    `keep`: the servers' data are to stay, so that they lie on the folder's own disk.
    """
    if keep or not can_mount():
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=711", "tmpfs", str(folder)], check=True)
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _unshared(command: str) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /mnt 2>/dev/null && {command}"]
