"""The device socket: requests and answers as ids and numbers, and the frames that carry them.

A frame is a fixed prefix, a small JSON header and a raw little-endian payload:

    u32 header bytes | u32 payload bytes | header (JSON) | payload

The client sends `Request`; the server sends `Hello` on connect, then per request any number of
`Started`, `Answers` and `Failed` until each prompt has an answer, and `Alive` every second meanwhile.
No pickle: whatever arrives is checked before it is used. Knows nothing of text, guards or queues.
"""

from __future__ import annotations

import socket
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, Literal, Protocol, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from infra.errors import DeviceError
from schemas.base import Frozen
from schemas.messages import Lane
from worker.device.engines.base import EngineInfo


class Kind(StrEnum):
    """The kind of request to an engine."""

    SCORE = "score"
    GENERATE = "generate"
    CLASSIFY = "classify"


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """Prompts to run. `labels` matter in score, `stop_ids`, `max_new_tokens` and `verdict_ids` in generate.

    A continuation may end with the first of the sequences `verdict_ids` in it: the verdict is known.
    `isolate` asks for one batch per prompt (a chunk that was delivered too often). Prompts that are equal in
    all this and wait together run once, unless they belong to different judgements of a repeated run (`iteration`).
    """

    kind: Kind
    lane: Lane
    prompts: list[array[int]]
    labels: tuple[tuple[int, ...], ...] = ()
    stop_ids: tuple[int, ...] = ()
    max_new_tokens: int = 0
    verdict_ids: tuple[tuple[int, ...], ...] = ()
    iteration: int = 0
    isolate: bool = False
    suspects: Mapping[int, int] = field(default_factory=dict)
    """Prompts, by index, in whose batch a device process died before; each runs alone. How often it died of them."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Natural-log probabilities: of the request's labels over the whole vocabulary, or of a classifier's classes."""

    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The new ids, without prompt and without the stop id."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dead:
    """The prompt killed the device process, outlived its deadline or cannot fit, `attempts` times."""

    reason: str
    attempts: int


Answer = Scored | Generated | Dead


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """Answers in the order of the prompts, and what the batches they rode in cost.

    `infer_s`, `tokens` and `padded_tokens` are summed over those batches whole, strangers' prompts
    included; `share_s` is what these prompts took of it; `restarts` counts how often the device process was lost on
    the way.
    """

    answers: list[Answer]
    infer_s: float = 0.0
    share_s: float = 0.0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    restarts: int = 0


PROTOCOL_VERSION: Final = 6
MAX_HEADER_BYTES: Final = 1 << 20
MAX_PAYLOAD_BYTES: Final = 64 << 20
"""A chunk holds at most 1 MiB of text, so its ids take a few MiB."""

_PREFIX: Final = struct.Struct("<II")
INT_BYTES: Final = array("i").itemsize
DOUBLE_BYTES: Final = array("d").itemsize


class Hello(Frozen):
    """The server's first frame."""

    type: Literal["hello"] = "hello"
    version: int = PROTOCOL_VERSION
    pid: int
    info: EngineInfo


class Request(Frozen):
    """Prompts to run; `alone`: one batch each. Payload: as many lengths as prompts, then all ids (int32).

    `traceparent`: the span that asks (W3C Trace Context), where traces are on.
    """

    type: Literal["request"] = "request"
    id: int
    kind: Kind
    lane: Lane
    alone: bool = False
    prompts: int = Field(ge=1)
    labels: tuple[tuple[int, ...], ...] = ()
    stop_ids: tuple[int, ...] = ()
    max_new_tokens: int = Field(default=0, ge=0)
    verdict_ids: tuple[tuple[int, ...], ...] = ()
    iteration: int = Field(default=0, ge=0)
    traceparent: str | None = Field(default=None, max_length=64)


class Started(Frozen):
    """Prompts of a request are in the batch about to run. Payload: their indexes (int32)."""

    type: Literal["started"] = "started"
    id: int


class Answers(Frozen):
    """Answers of one batch. Payload: indexes (int32), then the rows of `pack_rows`.

    `batch_rows`, `tokens` (useful) and `padded_tokens` describe the whole batch as it ran: equal prompts are one row.
    `share_s` is these prompts' part of `infer_s`: a batch's time is shared by its rows in proportion to the tokens that
    had to run, a row's by the equal prompts that rode in it.
    """

    type: Literal["answers"] = "answers"
    id: int
    kind: Kind
    count: int = Field(ge=1)
    infer_s: float
    share_s: float = 0.0
    batch_rows: int
    tokens: int
    padded_tokens: int


class Failed(Frozen):
    """Prompts that can have no answer. Payload: their indexes (int32)."""

    type: Literal["failed"] = "failed"
    id: int
    reason: str


class Alive(Frozen):
    """The process lives, to a client that waits for answers; without payload."""

    type: Literal["alive"] = "alive"


NumbersT = TypeVar("NumbersT", "array[int]", "array[float]")
Header = Annotated[Hello | Request | Started | Answers | Failed | Alive, Field(discriminator="type")]
_HEADER: Final[TypeAdapter[Header]] = TypeAdapter(Header, config=ConfigDict(hide_input_in_errors=True))


class Stream(Protocol):
    """The reading half of a connection."""

    def read(self, size: int, /) -> bytes | None:
        """Exactly `size` bytes, or fewer at the end."""


def send_frame(connection: socket.socket, header: Header, payload: bytes = b"") -> None:
    """Write one frame.

    Raises:
        OSError: the other side is gone.
        DeviceError: the frame is larger than the protocol allows.
    """
    text = header.model_dump_json().encode()
    if len(text) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise DeviceError(f"a frame of {len(text):,} + {len(payload):,} bytes is too large for the device socket")
    connection.sendall(b"".join((_PREFIX.pack(len(text), len(payload)), text, payload)))


def read_frame(stream: Stream) -> tuple[Header, bytes]:
    """The next frame.

    Raises:
        OSError: the connection broke or ended.
        DeviceError: what arrived is no frame; the connection is of no further use.
    """
    header_bytes, payload_bytes = _PREFIX.unpack(_exactly(stream, _PREFIX.size))
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise DeviceError(f"a frame announces {header_bytes:,} + {payload_bytes:,} bytes: not our protocol")
    text = _exactly(stream, header_bytes)
    payload = _exactly(stream, payload_bytes)
    try:
        return _HEADER.validate_json(text), payload
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        raise DeviceError(f"malformed frame header: {problem['loc']}: {problem['msg']}") from error


def _exactly(stream: Stream, size: int) -> bytes:
    content = stream.read(size) or b""
    if len(content) < size:
        raise ConnectionResetError("the other side of the device socket is gone")
    return content


def pack_ints(values: Sequence[int]) -> bytes:
    """Int32, little-endian."""
    return _to_wire(values if isinstance(values, array) else array("i", values))


def unpack_ints(payload: bytes) -> array[int]:
    """The ints of a payload.

    Raises:
        DeviceError: not a whole number of ints.
    """
    if len(payload) % INT_BYTES:
        raise DeviceError("malformed payload: not a whole number of int32")
    return _from_wire(array("i"), payload)


def pack_rows(rows: Sequence[Sequence[int]]) -> bytes:
    """Rows of ids: as many lengths as there are rows, then all ids (int32)."""
    lengths = array("i", [len(row) for row in rows])
    return b"".join((_to_wire(lengths), *(pack_ints(row) for row in rows)))


def unpack_rows(payload: bytes, count: int) -> list[array[int]]:
    """`count` rows of ids.

    Raises:
        DeviceError: the lengths do not add up.
    """
    numbers = unpack_ints(payload)
    lengths = numbers[:count]
    if len(lengths) < count or min(lengths, default=0) < 0 or count + sum(lengths) != len(numbers):
        raise DeviceError("malformed payload: the lengths of its rows do not add up")
    rows = []
    start = count
    for length in lengths:
        rows.append(numbers[start : start + length])
        start += length
    return rows


def pack_answers(kind: Kind, indexes: Sequence[int], rows: Sequence[Sequence[float]]) -> bytes:
    """The payload of `Answers`: score rows are float64 of equal width, generated rows are ids."""
    if kind is Kind.GENERATE:
        return pack_ints(indexes) + pack_rows([[int(value) for value in row] for row in rows])
    return pack_ints(indexes) + _to_wire(array("d", [value for row in rows for value in row]))


def unpack_answers(header: Answers, payload: bytes) -> list[tuple[int, Scored | Generated]]:
    """Index and answer of each prompt.

    Raises:
        DeviceError: the payload does not fit its header.
    """
    split = header.count * INT_BYTES
    indexes = unpack_ints(payload[:split])
    if len(indexes) < header.count:
        raise DeviceError("malformed payload: fewer indexes than answers")
    if header.kind is Kind.GENERATE:
        rows = unpack_rows(payload[split:], header.count)
        return [(index, Generated(tuple(row))) for index, row in zip(indexes, rows, strict=True)]
    scores = payload[split:]
    if len(scores) % (header.count * DOUBLE_BYTES):
        raise DeviceError("malformed payload: rows of scores are not of equal width")
    values = _from_wire(array("d"), scores)
    width = len(values) // header.count
    return [(index, Scored(tuple(values[row * width : (row + 1) * width]))) for row, index in enumerate(indexes)]


def _to_wire(values: array[int] | array[float]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _from_wire(empty: NumbersT, content: bytes) -> NumbersT:
    empty.frombytes(content)
    if sys.byteorder == "big":
        empty.byteswap()
    return empty
