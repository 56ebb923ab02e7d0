"""The work of a drill's fleet: data sets by a producer, one tenant's live items in two runs, and callers of a gateway.

What the ledger or the gateway has acknowledged is remembered, for the audit. Knows no fault.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import redis
from sqlalchemy.exc import SQLAlchemyError

from infra.errors import LibraError
from infra.ledger import intake
from infra.ledger.intake import Submission
from infra.ledger.keys import create_key
from infra.servers.services import Services
from libra_fleet.drill.ground import GUARD
from schemas.access import Role
from schemas.items import Item
from schemas.messages import Lane
from schemas.runs import RunSpec

TENANT: Final = "drill"
OPEN: Final = ("drill-live-0", "drill-live-1", "drill-bulk")
"""Runs that stay open: two of one tenant, so that collectors meet in its feed, and one for single chunks."""
_TICK_S: Final = 0.25
_CHUNKS_A_TICK: Final = 2
_CALL_TIMEOUT_S: Final = 5.0
_CALL_PAUSE_S: Final = 0.2
_CALLS_KEPT_S: Final = 120.0


class DataSets:
    """Data sets of so many rows, one after the other."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder = folder
        self.rows = rows
        self.submitted: list[str] = []
        """Names of all that were given out."""
        self._again: list[str] = []

    @property
    def waiting(self) -> bool:
        """True if some are to be submitted again."""
        return bool(self._again)

    def next(self) -> tuple[str, Path]:
        """The next data set to submit, and its name: one that is to be submitted again, or a new one."""
        if self._again:
            name = self._again.pop(0)
            return name, self._path(name)
        name = f"drill-{len(self.submitted)}"
        self.submitted.append(name)
        rows = (
            # A category of its own each: a report over as many groups as there are items.
            {"id": f"{name}-{at}", "text": f"第 {at} 条文本 of {name}", "category": f"category {at}"}
            for at in range(self.rows)
        )
        self._path(name).write_text(
            "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8"
        )
        return name, self._path(name)

    def submit_again(self, names: Sequence[str]) -> None:
        """Have data sets submitted once more, for their runs were lost."""
        self._again += names

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"


class LiveItems:
    """One tenant's items, with submissions, in two runs at once; from a thread that outlasts every outage."""

    def __init__(self, services: Services) -> None:
        self._services = services
        live, bulk = (RunSpec(guard=GUARD, source="drill", lane=lane, tenant=TENANT) for lane in (Lane.LIVE, Lane.BULK))
        self._specs = dict(zip(OPEN, (live, live, bulk), strict=True))
        self._numbers = itertools.count()
        self.runs: dict[str, str] = {}

    def open(self) -> None:
        """Open the runs."""
        engine = self._services.engine
        self.runs = {name: intake.create_run(engine, spec, name=name) for name, spec in self._specs.items()}

    def submit(self, texts: Sequence[str]) -> str:
        """Put one chunk on the bulk lane; returns its id."""
        return self._accept(OPEN[2], texts)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Submit some items every quarter of a second."""
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(over,), name="drill-live", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_CALL_TIMEOUT_S)

    def _run(self, over: threading.Event) -> None:
        while not over.wait(_TICK_S):
            with contextlib.suppress(SQLAlchemyError, redis.RedisError, LibraError):
                for name in OPEN[:2] * _CHUNKS_A_TICK:
                    self._accept(name, [f"live {next(self._numbers)} of {name}"])

    def _accept(self, name: str, texts: Sequence[str]) -> str:
        items = [Item(id=f"{name}-{next(self._numbers)}", response=text) for text in texts]
        submissions = {item.id: Submission(TENANT, custom_id=item.id) for item in items}
        engine = self._services.engine
        (chunk,) = intake.accept_submitted(engine, self.runs[name], self._specs[name], [items], submissions)
        self._services.publisher.judge(chunk)
        return chunk.chunk_id


@dataclass
class _Call:
    custom_id: str
    acknowledged_at: float | None = None


@dataclass
class Callers:
    """A client of the gateway, which sends a call again under its key until it is acknowledged."""

    services: Services
    port: int
    calls: list[_Call] = field(default_factory=list)
    _again: list[_Call] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Call until the context ends."""
        key = create_key(self.services.engine, tenant=f"{TENANT}-http", role=Role.SERVICE)[1]
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(key, over), name="drill-http", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_CALL_TIMEOUT_S + 1)

    @property
    def acknowledged(self) -> list[str]:
        """Custom ids of the items that the gateway has said it took."""
        return [call.custom_id for call in self.calls if call.acknowledged_at is not None]

    def call_again(self) -> None:
        """Send what was acknowledged lately once more, under the same keys: what a caller does after a failover."""
        since = time.monotonic() - _CALLS_KEPT_S
        for call in self.calls:
            if (call.acknowledged_at or 0.0) > since:
                call.acknowledged_at = None
                self._again.append(call)

    @property
    def waiting(self) -> bool:
        """True if some are still to be sent again."""
        return bool(self._again)

    def _run(self, key: str, over: threading.Event) -> None:
        for number in itertools.count():
            if self._again:
                call = self._again.pop(0)
            else:
                call = _Call(f"call-{number}")
                self.calls.append(call)
            while not over.is_set() and not self._send(key, call):
                over.wait(_CALL_PAUSE_S)
            if over.wait(0 if self._again else _CALL_PAUSE_S):
                return

    def _send(self, key: str, call: _Call) -> bool:
        body = json.dumps({"items": [{"text": f"text of {call.custom_id}", "custom_id": call.custom_id}]}).encode()
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Idempotency-Key": call.custom_id,
        }
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/items", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=_CALL_TIMEOUT_S) as answer:  # noqa: S310 - our own
                accepted = answer.status in (200, 202)
        except (OSError, urllib.error.URLError):
            return False
        if accepted:
            call.acknowledged_at = time.monotonic()
        return accepted
