"""Runs whose row somebody else keeps locked. Knows nothing of the ledger: who settles says what is locked.

A joint settlement would wait for such a run again and again, and all others with it. So one of the run's chunks tries
by itself now and then, until that comes through.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TRYING_AT_ONCE: Final = 2
"""Each of them waits at the ledger with a connection of its own; the others keep the rest."""


class LockedRuns:
    """The runs that are set aside. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[str] = set()
        self._trying: set[str] = set()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def note(self, run_id: str, *, locked: bool) -> None:
        """Set a run aside, or take it back."""
        if locked or run_id in self._runs:
            with self._lock:
                (self._runs.add if locked else self._runs.discard)(run_id)

    @contextmanager
    def trying(self, run_id: str) -> Iterator[bool]:
        """True for the one caller that may try this run now."""
        with self._lock:
            mine = run_id not in self._trying and len(self._trying) < _TRYING_AT_ONCE
            if mine:
                self._trying.add(run_id)
        try:
            yield mine
        finally:
            if mine:
                with self._lock:
                    self._trying.discard(run_id)
