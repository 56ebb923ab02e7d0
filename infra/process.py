"""Processes: a child that dies with its parent, a wait on a condition, a lock on a file.

Knows nothing about what the processes do.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_WATCH_EVERY_S: Final = 1.0
_POLL_S: Final = 0.02

# Loaded here, not after a fork: nothing may be imported or allocated by ctypes between fork and exec.
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def python_module(name: str, *arguments: str) -> list[str]:
    """A command that runs one of our modules with this interpreter.

    `-P` keeps the current folder off the import path: a user's own `schemas.py` or `worker.py` there would otherwise
    take the place of our package, and be executed.
    """
    return [sys.executable, "-P", "-m", name, *arguments]


def die_with_parent(signal_number: int = signal.SIGKILL, *, parent_pid: int | None = None) -> None:
    """Have this process receive `signal_number` as soon as its parent is gone, however that one ended.

    Linux sends the signal at once. It does so when the *thread* that started us ends, so the parent must start us
    from a thread that lives as long as it wants us to. Elsewhere, a daemon thread looks every second.

    Args:
        signal_number: the signal to receive; a process that drains on SIGTERM asks for that.
        parent_pid: the parent by its own word (its `os.getpid()`). Only then is a parent noticed that died
            before this call.
    """
    parent = os.getppid() if parent_pid is None else parent_pid
    _tie(signal_number, parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_EVERY_S)
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def tied_to_caller(signal_number: int) -> Callable[[], None]:
    """A `preexec_fn` that ties a program of any language to the process that calls this.

    It runs after Popen's `user=` and `group=`, which matters: a change of user clears the tie. Like every preexec_fn
    it is safe only in a process without threads. No effect outside Linux.
    """
    parent = os.getpid()
    return lambda: _tie(signal_number, parent)


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Ask every 20 ms until the condition holds; False if it never did within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def leave_out_of_collections() -> None:
    """Have the garbage collector never look again at what lives now: call it once, when all is loaded.

    A full collection in a process that holds torch and a tokenizer looks at 382,000 objects, and was measured to stop
    it for 0.2 s.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Defer a Ctrl-C to the next call of the yielded function; a second one takes effect at once.

    For work with points at which it may stop and others at which it should not: libraries that are interrupted
    anywhere raise anything. Main thread only, as with every signal handler.
    """
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


class FileLock:
    """One open lock file, which cannot be forgotten: the kernel drops an flock with the last process that has it open.

    A program started with its descriptor, or a fork, holds the same lock with us.

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

    def __exit__(self, *_: object) -> None:
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


def module_path() -> str:
    """A PYTHONPATH with which a Python child finds the modules that we find, which an inherited one may not have."""
    return os.pathsep.join(filter(None, sys.path))


def _tie(signal_number: int, parent: int) -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    # The parent may have ended before the kernel was asked.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)
