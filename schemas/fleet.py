"""The fleet as its processes announce it, and as one look at the servers finds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from schemas.base import Frozen, Shared
from schemas.messages import Lane

ProcessKind = Literal["worker", "collector", "gateway", "webhooks"]
Server = Literal["ledger", "broker"]
READY: Final = "ready"
QUARANTINED: Final = "quarantined"
"""Of a device that failed, and is tried again after a pause."""


def _none_if_unreadable(value: Any, read: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 - pydantic's own types
    try:
        return read(value)
    except ValidationError:
        return None


_Lenient = WrapValidator(_none_if_unreadable)
"""A figure of another version that is not what it is here counts as one that is not announced."""
_Count = Annotated[int | None, _Lenient]
_Figure = Annotated[float | None, _Lenient]


class Announcement(Shared):
    """A live process as it announces itself every few seconds; one entry for each device of a worker.

    A fleet is upgraded machine by machine: kinds and states may be ones that this version does not know, and all but
    the first three fields may be missing.
    """

    id: str
    kind: str
    """A `ProcessKind`, or what a later version adds."""
    state: str
    """`loading`, `ready`, `draining`, or `quarantined`: a device that failed and is tried again after a pause."""
    pid: _Count = None
    version: str | None = None

    # A worker's: its guard, the kinds of items that it judges, its device, and the digests of its verdicts by mode.
    guard: str | None = None
    kinds: Annotated[list[str] | None, _Lenient] = None
    device: str | None = None
    trouble: str | None = None
    """Why the device is not ready, where it failed."""
    fingerprints: Annotated[dict[str, str] | None, _Lenient] = None

    # What the device has done since its process started.
    batches: _Count = None
    items: _Count = None
    rows: _Count = None
    tokens: _Count = None
    padded_tokens: _Count = None
    busy_s: _Figure = None
    budget_tokens: _Count = None

    # What it did over the last minute (`over_s` of it); missing until it is known.
    over_s: _Figure = None
    busy_share: _Figure = None
    items_per_s: _Figure = None
    tokens_per_s: _Figure = None
    padding_share: _Figure = None

    def to_wire(self) -> str:
        """The JSON that is announced; fields without a value are left out."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def from_wire(cls, announced: str) -> Announcement | None:
        """An announcement; None if it lacks what all have to say."""
        try:
            return cls.model_validate_json(announced)
        except ValidationError:
            return None


def ready(announced: Iterable[Announcement], role: ProcessKind, guard: str | None = None) -> list[Announcement]:
    """The ready processes of a role, of one guard alone if it is named."""
    return [
        process
        for process in announced
        if process.kind == role and process.state == READY and guard in (None, process.guard)
    ]


class Queue(Frozen):
    """One guard's lane: its chunks on the broker, its items in the ledger.

    `oldest_s` is the age of the chunk that is delivered next, `pending_s` that of the oldest unsettled one, which a
    consumer may hold.
    """

    guard: str
    lane: Lane
    waiting: int = 0
    held: int = 0
    oldest_s: float | None = None
    pending: int = 0
    pending_s: float = 0.0


class OpenRun(Frozen):
    """A run that has not ended. `expected` is None until it is sealed."""

    id: str
    name: str
    guard: str
    lane: Lane
    state: str
    accepted: int
    settled: int
    pending: int
    dead: int
    expected: int | None


class FleetSnapshot(Frozen):
    """The fleet at one moment. What a server knows that is `away` is left empty, or zero."""

    away: dict[Server, str] = Field(default_factory=dict)
    """The servers that did not answer, each with the reason in a sentence."""
    queues: tuple[Queue, ...] = ()
    """Those of announced workers, those with pending items, and those that were asked for; by guard and lane."""

    announced: tuple[Announcement, ...] = ()
    verdicts_waiting: int = 0
    """Judged chunks that no collector has taken yet."""
    finalizing_waiting: int = 0
    """Runs whose metrics no collector has begun to compute."""
    dead_letters: int = 0
    verdicts_kept: int = 0
    """Judged chunks that could not be settled, and are kept until somebody has them settled again."""
    counts: dict[str, str] = Field(default_factory=dict)
    """Counts of all processes; `infra.coordination.counters` reads them."""

    runs: tuple[OpenRun, ...] = ()
    dead_items: int = 0
    webhooks_pending: int = 0
    webhooks_due: int = 0
    webhooks_due_s: float = 0.0

    def of_kind(self, kind: ProcessKind) -> list[Announcement]:
        """The announced processes of a kind, ready or not, by guard and id."""
        return sorted((one for one in self.announced if one.kind == kind), key=lambda one: (one.guard or "", one.id))
