"""Locks that cannot be forgotten: the kernel drops an flock with the last process that holds its file open.

Knows nothing about what is being locked.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class FileLock:
    """One open lock file. A program started with its descriptor, or a fork, holds the same lock with us.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def fileno(self) -> int:
        """The descriptor, to hand the lock to another process."""
        return self._descriptor

    def try_shared(self) -> bool:
        """Take the lock together with other sharers, or turn ours into a shared one; False if it is taken."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take the lock alone, or turn ours into that; False (and a shared one may be lost) if it is taken."""
        return self._try(fcntl.LOCK_EX)

    def close(self) -> None:
        """Close our descriptor; others who were given it still hold the lock (an explicit unlock would take it)."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def is_held(path: Path) -> bool:
    """True if some process holds the lock exclusively. Never creates the file."""
    if not path.exists():
        return False
    with FileLock(path) as lock:
        return not lock.try_shared()
