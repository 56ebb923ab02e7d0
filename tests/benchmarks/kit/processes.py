"""What a fleet's processes cost: CPU seconds and resident memory by kind of process. Linux only.

How the CPU is counted. The benchmark makes itself a subreaper, so that every process of the fleet is its descendant,
the keeper (which daemonises itself) included. A process's own user + system time and that of its children which ended
and were waited for are summed over all living descendants: a backend of Postgres that ended during the run is in its
postmaster's count, nothing is counted twice and nothing is lost. The cost of a run is the difference between two such
sums. The benchmark process itself is left out.
"""

from __future__ import annotations

import ctypes
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

_PR_SET_CHILD_SUBREAPER: Final = 36
_KINDS: Final = (
    ("tests.benchmarks.kit.producing", "producer"),
    ("libra_fleet.cli worker", "supervisor"),
    ("worker.device", "device process"),
    ('"lane": "live"', "live consumer"),
    ('"lane": "bulk"', "bulk consumer"),
    ("worker.collector.finalizer", "finalizer"),
    ("libra_fleet.cli collector", "collector"),
    ("infra.servers.keeper", "keeper"),
    ("valkey-server", "valkey"),
    ("postgres", "postgres"),
)


class Sample(NamedTuple):
    """One look at the fleet: epoch seconds; CPU seconds used so far and resident bytes, by kind."""

    at: float
    cpu_s: Counter[str]
    rss: Counter[str]


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent has ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Meter:
    """Looks at all descendants now and then, from a thread, while its context lasts."""

    def __init__(self, every_s: float = 0.2) -> None:
        self._every_s = every_s
        self._kinds: dict[int, str] = {}
        self._samples: list[Sample] = []
        self._self = psutil.Process()
        self._lock = threading.Lock()

    @property
    def samples(self) -> list[Sample]:
        """Everything seen so far, in order."""
        return self._samples

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Look every `every_s` seconds."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()
            self.look()

    def look(self) -> Sample:
        """Look now."""
        with self._lock:
            at, cpu_s, rss = time.time(), Counter[str](), Counter[str]()
            own = self._self.cpu_times()
            cpu_s["ended"] += own.children_user + own.children_system
            for process in self._self.children(recursive=True):
                try:
                    self._add(process, cpu_s, rss)
                except psutil.NoSuchProcess:
                    continue  # its time is in its parent's count from now on
            sample = Sample(at, cpu_s, rss)
            self._samples.append(sample)
            return sample

    def cpu_between(self, start: float, end: float) -> Counter[str]:
        """CPU seconds by kind between two moments (epoch seconds), between looks by straight line."""
        first, last = self._cpu_at(start), self._cpu_at(end)
        return Counter({kind: last[kind] - first.get(kind, 0.0) for kind in last})

    def _cpu_at(self, moment: float) -> dict[str, float]:
        after = min(max(bisect_left(self._samples, moment, key=lambda sample: sample.at), 1), len(self._samples) - 1)
        left, right = self._samples[after - 1], self._samples[after]
        share = min(1.0, max(0.0, (moment - left.at) / (right.at - left.at)))
        return {kind: left.cpu_s[kind] + share * (right.cpu_s[kind] - left.cpu_s[kind]) for kind in right.cpu_s}

    def _add(self, process: psutil.Process, cpu_s: Counter[str], rss: Counter[str]) -> None:
        with process.oneshot():
            times = process.cpu_times()
            kind = self._kinds.get(process.pid) or self._kind(process)
            cpu_s[kind] += times.user + times.system + times.children_user + times.children_system
            rss[kind] += process.memory_info().rss

    def _kind(self, process: psutil.Process) -> str:
        command = " ".join(process.cmdline())
        kind = next((kind for mark, kind in _KINDS if mark in command), "other")
        if kind != "other":  # a child that has not called exec yet says what its parent is
            self._kinds[process.pid] = kind
        return kind

    def _watch(self, done: threading.Event) -> None:
        while not done.is_set():
            self.look()
            done.wait(self._every_s)


def find_process(kind: str) -> psutil.Process:
    """The one descendant of this kind.

    Raises:
        LookupError: there is none.
    """
    mark = next(mark for mark, name in _KINDS if name == kind)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if mark in " ".join(process.cmdline()):
                return process
    raise LookupError(f"no {kind} is running")


def peak_rss(pid: int) -> int:
    """The most resident bytes a process has ever had (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"no VmHWM of process {pid}")
