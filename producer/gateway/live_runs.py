"""The live runs that a gateway feeds: one per tenant, guard, mode and day."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger import intake
from schemas.guards import Mode
from schemas.messages import Lane
from schemas.runs import RunSpec

_KNOWN_S: Final = 10.0
"""How long a day's run is taken for today's; items that follow midnight so closely lie in yesterday's."""


class Stream(NamedTuple):
    """What shares a live run: a tenant, a guard and how it is asked."""

    tenant: str
    guard: str
    mode: Mode

    def spec(self) -> RunSpec:
        """The run's spec."""
        return RunSpec(
            guard=self.guard,
            mode=self.mode,
            lane=Lane.LIVE,
            source=f"live:{self.tenant}",
            tenant=self.tenant,
            cache=True,
            verdict_only=self.mode is Mode.GENERATE,
        )


class LiveRuns:
    """Today's run of each stream. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._runs: dict[Stream, tuple[float, str]] = {}

    def of(self, stream: Stream) -> str:
        """The id of a stream's run, opened where there is none."""
        until, run_id = self._runs.get(stream, (0.0, ""))
        if time.monotonic() >= until:
            run_id = intake.live_run(self._engine, stream.spec(), tenant=stream.tenant)
            self._runs[stream] = (time.monotonic() + _KNOWN_S, run_id)
        return run_id

    def forget(self, stream: Stream) -> None:
        """The stream's run was closed."""
        self._runs.pop(stream, None)

    def ids(self, tenant: str) -> list[str]:
        """The runs that were fed for a tenant since this process began, the latest of each stream."""
        return [run_id for stream, (_, run_id) in list(self._runs.items()) if stream.tenant == tenant]
