"""The messages on the broker: versioned and frozen.

A reader that meets a newer version raises `NewerVersionError`: the message goes to the dead-letter queue and is never
dropped, so that a fleet can be upgraded machine by machine. A field that a reader can do without needs no
new version: see `schemas.base.Shared`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from schemas.base import ADDED, Shared
from schemas.guards import Mode, TextForm
from schemas.items import PLAIN_KINDS, Example, Item, Kind, Turn, kind_of
from schemas.verdicts import Fingerprint, Spent, Timings, Verdict

WIRE_VERSION: Final = 1
EXAMPLES_VERSION: Final = 2
"""Of chunks with worked examples: who does not know these would ask another question and not notice."""
KINDS_VERSION: Final = 3
"""Of chunks with an item that is neither a text nor a pair: who knows only these would judge it as one of them."""
FORM_VERSION: Final = 4
"""Of chunks whose texts are judged in another form than they have: who knows no forms would judge them as they are."""


class Lane(StrEnum):
    """Two lanes share a device; live goes first."""

    LIVE = "live"
    BULK = "bulk"


class MessageError(ValueError):
    """A message that this version cannot read."""


class NewerVersionError(MessageError):
    """A message written by a newer version than this reader."""


class ChunkItem(Shared):
    """An item as the worker needs it: no id, no truth, only its place in the run, its texts and their kind.

    Without a `kind`, as before there were any, it is a pair, or a text where its question is empty.
    """

    seq: int = Field(ge=0)
    question: str
    response: str
    history: tuple[Turn, ...] = Field(default=(), **ADDED)
    kind: Kind = Field(default_factory=kind_of, exclude_if=PLAIN_KINDS.__contains__)

    @classmethod
    def of(cls, seq: int, item: Item) -> ChunkItem:
        """The item as it travels."""
        return cls(seq=seq, question=item.question, response=item.response, history=item.history, kind=item.kind)

    @property
    def single(self) -> bool:
        """True if one text is judged that answers nothing: also the last turn of a conversation, if it is a user's."""
        return not self.response or not (self.question or self.history)

    @property
    def dialogue(self) -> tuple[str, str]:
        """Question and response as a prompt has places for them: a single text stands in the response's."""
        return (self.question, self.response) if self.response else ("", self.question)


class JudgeChunk(Shared):
    """Up to 64 items on their way to a worker.

    `enqueued_at` is the ledger's clock in epoch seconds, for ages; the reconciler's watermark reads `ordinal`, which
    the ledger counts up (0: written before there were ordinals). `nonce` is drawn at random when the chunk is
    committed, and tells it from a chunk of the same number in a commit that a failover lost.
    With `cache` what a device answered before may be taken again; with `verdict_only` a model may stop writing once
    its verdict is known. `examples` are shown to the guard before each item; such a chunk is of version 2, one with an
    item that is neither a text nor a pair of version 3, one with another `form` than the texts' own of version 4.
    `pin`: the digest of the fingerprint that the run keeps, if it was known when the chunk was enqueued; who judges it
    under another one judges in vain.
    """

    NEWEST: ClassVar[int] = FORM_VERSION

    version: Literal[1, 2, 3, 4] = WIRE_VERSION
    run_id: str
    chunk_no: int = Field(ge=0)
    iteration: int = Field(default=0, ge=0)
    attempt: int = Field(default=1, ge=1)
    guard: str
    mode: Mode
    lane: Lane
    enqueued_at: float
    items: tuple[ChunkItem, ...] = Field(min_length=1)
    cache: bool = Field(default=False, **ADDED)
    verdict_only: bool = Field(default=False, **ADDED)
    examples: tuple[Example, ...] = Field(default=(), **ADDED)
    nonce: str = Field(default="", **ADDED)
    ordinal: int = Field(default=0, ge=0, **ADDED)
    pin: str = Field(default="", **ADDED)
    form: TextForm = Field(default=TextForm.AS_IS, exclude_if=lambda form: form is TextForm.AS_IS)

    @model_validator(mode="after")
    def _version_tells(self) -> JudgeChunk:
        if self.examples and self.version < EXAMPLES_VERSION:
            raise ValueError(f"a chunk with examples is of version {EXAMPLES_VERSION}")
        if self.version < version_of((), (), self.form):
            raise ValueError(f"a chunk whose texts are judged in another form is of version {FORM_VERSION}")
        if self.version < version_of(self.items, self.examples, self.form):
            raise ValueError(f"a chunk with an item that is neither text nor pair is of version {KINDS_VERSION}")
        return self

    @property
    def chunk_id(self) -> str:
        """Unique over all runs, stable over attempts."""
        return f"{self.run_id}/{self.chunk_no}"


class VerdictChunk(Shared):
    """The verdicts of one judged chunk on their way to the collector. A worker older than `spent` does not say it.

    `nonce` is the judged chunk's own: empty where that had none, None from a worker that knows of no nonces.
    `failures` counts the deliveries that ended in an error nobody foresaw.
    """

    NEWEST: ClassVar[int] = WIRE_VERSION

    version: Literal[1] = WIRE_VERSION
    run_id: str
    chunk_no: int = Field(ge=0)
    iteration: int = Field(default=0, ge=0)
    attempt: int = Field(default=1, ge=1)
    worker: str
    fingerprint: Fingerprint | None
    timings: Timings
    verdicts: tuple[Verdict, ...] = Field(min_length=1)
    spent: Spent | None = Field(default=None, **ADDED)
    nonce: str | None = Field(default=None, exclude_if=lambda nonce: nonce is None)
    failures: int = Field(default=0, ge=0, **ADDED)

    @property
    def chunk_id(self) -> str:
        """The judged chunk's own id."""
        return f"{self.run_id}/{self.chunk_no}"


def version_of(items: Sequence[ChunkItem], examples: Sequence[Example], form: TextForm) -> Literal[1, 2, 3, 4]:
    """The version of a chunk that holds these: the oldest that says all of it."""
    if form is not TextForm.AS_IS:
        return 4
    if any(item.kind not in PLAIN_KINDS for item in items):
        return 3
    return 2 if examples else 1


ChunkT = TypeVar("ChunkT", JudgeChunk, VerdictChunk)


def decode_chunk(kind: type[ChunkT], body: str) -> ChunkT:
    """Read a message body.

    Raises:
        NewerVersionError: the sender is newer than this reader; park the message.
        MessageError: anything else that is not a valid message of this kind.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if _version_of(body) > kind.NEWEST:
            raise NewerVersionError(f"message version {_version_of(body)}, this reader knows {kind.NEWEST}") from error
        details = error.errors(include_input=False, include_url=False)
        where = ", ".join(f"{'.'.join(map(str, d['loc'])) or 'body'}: {d['msg']}" for d in details[:3])
        raise MessageError(f"not a {kind.__name__}: {where}") from error


def _version_of(body: str) -> int:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return 0
    version = content.get("version") if isinstance(content, dict) else None
    return version if isinstance(version, int) else 0
