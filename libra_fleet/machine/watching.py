"""For the screen of `libra up`: the last warnings of the logs, the time until runs end, the rate of the fleet."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from schemas.fleet import FleetSnapshot

_WINDOW_S: Final = 60.0
_SEEN_ENOUGH_S: Final = 3.0
_LONGEST_READ: Final = 1 << 20
_SEVERE: Final = ("warning", "error", "critical")


class Warnings:
    """The last warnings and errors of some logs, a line each; reads only lines that are added from now on."""

    def __init__(self, logs: Mapping[str, Path], *, keep: int = 4) -> None:
        self._logs = logs
        self._read_to = {kind: log.stat().st_size if log.is_file() else 0 for kind, log in logs.items()}
        self.last: deque[str] = deque(maxlen=keep)

    def look(self) -> list[str]:
        """The warnings since the last look, oldest first."""
        fresh: list[str] = []
        for kind, log in self._logs.items():
            fresh += [f"{kind}: {line}" for line in map(_warning, self._added(kind, log)) if line]
        self.last.extend(fresh)
        return fresh

    def _added(self, kind: str, log: Path) -> list[str]:
        """Whole lines that were added; a torn one is left for the next look."""
        if not log.is_file():
            return []
        start = self._read_to[kind]
        with log.open("rb") as file:
            file.seek(start)
            content = file.read(_LONGEST_READ)
        whole = content.rfind(b"\n") + 1
        self._read_to[kind] = start + whole
        return content[:whole].decode(errors="replace").splitlines()


def _warning(line: str) -> str:
    """A log's line for a person, if it is a warning or worse; "" otherwise."""
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(entry, dict) or entry.get("level") not in _SEVERE:
        return ""
    time = str(entry.get("timestamp", ""))[11:19]
    reason = next((str(entry[key]) for key in ("error", "reason", "exit_code") if key in entry), "")
    return " ".join(filter(None, (time, str(entry.get("event", "")), reason)))[:200]


class RunPace:
    """The pace at which each run settles, over the last minute of looks, and so the time until it ends."""

    def __init__(self) -> None:
        self._looks: dict[str, deque[tuple[float, int]]] = {}

    def look(self, now: float, fleet: FleetSnapshot) -> dict[str, float]:
        """Seconds until each run ends, by id: of sealed runs that have settled something since they were first seen."""
        left = {}
        self._looks = {run.id: self._looks.get(run.id, deque()) for run in fleet.runs}
        for run in fleet.runs:
            looks = self._looks[run.id]
            looks.append((now, run.settled))
            while len(looks) > 2 and looks[1][0] <= now - _WINDOW_S:
                looks.popleft()
            since, before = looks[0]
            if run.expected is not None and now - since >= _SEEN_ENOUGH_S and run.settled > before:
                left[run.id] = run.pending * (now - since) / (run.settled - before)
        return left


def items_per_s(fleet: FleetSnapshot) -> float | None:
    """Items that all workers judge a second, by their own last minute; None until one of them knows."""
    rates = [worker.items_per_s for worker in fleet.of_kind("worker") if worker.items_per_s is not None]
    return sum(rates) if rates else None
