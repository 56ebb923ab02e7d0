"""The client side of the device socket. Blocking, thread-safe, survives the death of the device process.

When the connection is lost, prompts announced as started but unanswered are suspects. They are sent
again, one batch each: the next death names the prompt that kills, all others get answers. Halving the
suspects again and again would run fewer batches but cost a death per halving, and a death costs a
model's load or a deadline: for 200 suspects 10 deaths instead of 3.

A process that is stopped or hangs sends no sign of life (`Alive`): its client leaves it after some seconds. That is
no prompt's doing, unless it happens again and again.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from infra import tracing
from infra.errors import DeviceAwayError, DeviceChangedError, DeviceError, DeviceProtocolError
from worker.device.engines.base import EngineInfo
from worker.device.protocol import (
    INT_BYTES,
    MAX_PAYLOAD_BYTES,
    PROTOCOL_VERSION,
    Alive,
    Answer,
    Answers,
    Dead,
    DeviceRequest,
    DeviceResult,
    Failed,
    Header,
    Hello,
    Request,
    Started,
    pack_rows,
    read_frame,
    send_frame,
    unpack_answers,
    unpack_ints,
)

RETRY_S: Final = 0.02
"""Pause between attempts to reach a lost device process."""
MAX_FRUITLESS_LOSSES: Final = 64
"""Losses in a row that brought a request neither an answer nor a suspect, before it gives up."""
SILENCE_S: Final = 10.0
"""A device process that owes answers and sends nothing for so long is left. It says every second that it lives."""
STILL_S: Final = 3.0
"""One that was silent for so long before it ended stood still: it was not a prompt that ended it."""
MAX_STANDSTILLS: Final = 3
"""Of a request; after these a standstill counts as any other death."""


class DeviceClient:
    """Each calling thread has a connection of its own, opened when first needed.

    `max_deaths`: how often a prompt may kill the device process alone before it is dead.
    `reconnect_timeout_s`: how long to wait for a device process that is not there (it loads a model). `silence_s`: how
    long one may be silent that owes an answer. `expected`: the engine that all answers must come from; a respawned
    process may have loaded another model, because its checkpoint was replaced meanwhile. None: any.
    """

    def __init__(
        self,
        socket_path: Path | str,
        *,
        max_deaths: int = 2,
        reconnect_timeout_s: float = 300.0,
        silence_s: float = SILENCE_S,
        expected: EngineInfo | None = None,
    ) -> None:
        self._socket_path = Path(socket_path)
        self._expected = expected
        self._max_deaths = max_deaths
        self._reconnect_timeout_s = reconnect_timeout_s
        self._silence_s = silence_s
        self._away = threading.Event()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._ids = itertools.count()
        self._closed = threading.Event()

    @property
    def info(self) -> EngineInfo:
        """The engine behind the socket, as it said when this thread last connected. It waits as `run` does."""
        return self._connected().info

    @property
    def is_away(self) -> bool:
        """True from a wait for the device process that was in vain until a connection to it."""
        return self._away.is_set()

    def look_for_device(self) -> None:
        """Try once to reach a device process that is away."""
        try:
            connection = _Connection(self._socket_path, self._silence_s)
        except OSError:
            return
        connection.close()
        self._away.clear()

    def run(self, request: DeviceRequest, *, on_progress: Callable[[], None] = lambda: None) -> DeviceResult:
        """Answer every prompt; `on_progress` is called whenever some more have an answer.

        Raises:
            DeviceAwayError: no device process came within the timeout; it carries the suspects.
            DeviceProtocolError: it speaks another protocol.
            DeviceChangedError: it holds another model than `expected`.
            DeviceError: it sent what is no answer to this.
        """
        ledger = _Ledger(request.suspects, self._max_deaths)
        todo = ledger.first_groups(request)
        while todo:
            group = todo.pop()
            if not group.missing:
                continue
            try:
                connection = self._connected()
            except DeviceAwayError as error:
                raise DeviceAwayError(str(error), ledger.suspects) from error
            try:
                request_id = next(self._ids)
                connection.send(
                    _header(request, request_id, group),
                    pack_rows([request.prompts[index] for index in group.indexes]),
                )
                while group.missing:
                    header, payload = connection.read()
                    ledger.take(group, request_id, header, payload)
                    on_progress()
            except OSError as error:
                self._forget(connection)
                todo.extend(ledger.lost(group, error, stood_still=connection.stood_still(error)))
            except BaseException:
                # The answers still under way would be taken for those of the next request.
                self._forget(connection)
                raise
        return ledger.result(len(request.prompts))

    def close(self) -> None:
        """Close every thread's connection; calls in progress end with DeviceError."""
        self._closed.set()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _connected(self) -> _Connection:
        """This thread's connection; opened where it has none, which waits for a device process that is loading."""
        connection: _Connection | None = getattr(self._local, "connection", None)
        deadline = time.monotonic() + self._reconnect_timeout_s
        while connection is None:
            if self._closed.is_set():
                raise DeviceError("the device client is closed")
            try:
                left_s = deadline - time.monotonic()
                connection = _Connection(self._socket_path, self._silence_s, hello_s=max(RETRY_S, left_s))
            except OSError as error:
                if time.monotonic() >= deadline:
                    self._away.set()
                    raise DeviceAwayError(
                        f"no device process on {self._socket_path} for {self._reconnect_timeout_s:g} s: {error}"
                    ) from error
                self._closed.wait(RETRY_S)
                continue
            self._away.clear()
            self._check_model(connection)
            self._local.connection = connection
            with self._lock:
                self._connections.add(connection)
        return connection

    def _check_model(self, connection: _Connection) -> None:
        """Refuse a device process whose answers would be those of another model."""
        if self._expected is None:
            return
        known, found = (
            (info.engine, info.dtype, info.revision, info.adapter) for info in (self._expected, connection.info)
        )
        if known != found:
            connection.close()
            raise DeviceChangedError(
                "the device process that was started again holds another model, its checkpoint was replaced: "
                f"{' '.join(filter(None, found))} instead of {' '.join(filter(None, known))}"
            )

    def _forget(self, connection: _Connection) -> None:
        connection.close()
        self._local.connection = None
        with self._lock:
            self._connections.discard(connection)


class _Connection:
    """One connection to the device process, greeted."""

    def __init__(self, socket_path: Path, silence_s: float, *, hello_s: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(silence_s if hello_s is None else min(hello_s, silence_s))
        try:
            self._socket.connect(str(socket_path))
            self._stream = self._socket.makefile("rb")
            hello, _ = self.read()
        except BaseException:
            self._socket.close()
            raise
        if not isinstance(hello, Hello) or hello.version != PROTOCOL_VERSION:
            self._socket.close()
            raise DeviceProtocolError(f"the device process speaks another protocol than version {PROTOCOL_VERSION}")
        self.info = hello.info
        self._socket.settimeout(silence_s)

    def send(self, header: Header, payload: bytes) -> None:
        send_frame(self._socket, header, payload)
        self._heard_at = time.monotonic()

    def read(self) -> tuple[Header, bytes]:
        frame = read_frame(self._stream)
        self._heard_at = time.monotonic()
        return frame

    def stood_still(self, error: OSError) -> bool:
        """True if the process showed no sign of life before the connection was given up or lost with `error`."""
        return isinstance(error, TimeoutError) or time.monotonic() - self._heard_at > STILL_S

    def close(self) -> None:
        # A thread that reads from it wakes up; if the other side was faster, it is awake already.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class _Group:
    """Prompts that are sent together: their indexes in the request, and how far they got."""

    def __init__(self, indexes: Sequence[int], *, alone: bool) -> None:
        self.indexes = list(indexes)
        self.alone = alone
        self.missing = set(self.indexes)
        self.started: set[int] = set()

    def at(self, positions: Iterable[int]) -> list[int]:
        """The indexes at these positions."""
        try:
            return [self.indexes[position] for position in positions]
        except IndexError as error:
            raise DeviceError("the device process answered a prompt that was not sent") from error


class _Ledger:
    """The state of one request: answers, deaths, costs."""

    def __init__(self, suspects: Mapping[int, int], max_deaths: int) -> None:
        self._answers: dict[int, Answer] = {}
        self.suspects = dict(suspects)
        """Prompts in whose batch a process died and that no process survived yet; how often one died of them alone."""
        self._max_deaths = max_deaths
        self._costs: list[Answers] = []
        self._losses = 0
        self._standstills = 0
        self._fruitless_losses = 0

    def first_groups(self, request: DeviceRequest) -> list[_Group]:
        """What to send, the last first: those beyond suspicion, in pieces that fit a frame, then suspects alone."""
        for suspect in list(self.suspects):
            self._bury(suspect)
        sizes = [INT_BYTES * (1 + len(prompt)) for prompt in request.prompts]
        for index, size in enumerate(sizes):
            if size > MAX_PAYLOAD_BYTES:
                self._answers[index] = Dead(f"the prompt takes {size:,} bytes, too many for the device socket", 1)
        left = [index for index in range(len(sizes)) if index not in self._answers]
        suspects = [index for index in left if index in self.suspects]
        others = [index for index in left if index not in self.suspects]
        return [
            *(_Group(piece, alone=True) for piece in _pieces(suspects, sizes)),
            *(_Group(piece, alone=request.isolate) for piece in _pieces(others, sizes)),
        ]

    def take(self, group: _Group, request_id: int, header: Header, payload: bytes) -> None:
        """Note one frame."""
        if isinstance(header, Alive):
            return
        if isinstance(header, (Started, Answers, Failed)) and header.id != request_id:
            raise DeviceError("the device process answered another request than this one")
        match header:
            case Started():
                group.started.update(group.at(unpack_ints(payload)))
            case Answers():
                self._costs.append(header)
                positions, answers = zip(*unpack_answers(header, payload), strict=True)
                self._settle(group, dict(zip(group.at(positions), answers, strict=True)))
            case Failed():
                dead = Dead(header.reason, attempts=1)
                self._settle(group, dict.fromkeys(group.at(unpack_ints(payload)), dead))
            case _:
                raise DeviceError(f"the device process sent a frame of type {header.type}")

    def lost(self, group: _Group, error: OSError, *, stood_still: bool) -> list[_Group]:
        """Note that the device process is gone; returns those to send again: the last, beyond suspicion, goes first."""
        self._losses += 1
        self._standstills += stood_still
        self._fruitless_losses = 0 if group.started else self._fruitless_losses + 1
        if self._fruitless_losses >= MAX_FRUITLESS_LOSSES:
            raise DeviceError(f"the device process died {self._losses} times, other prompts' doing") from error
        counts = not stood_still or self._standstills > MAX_STANDSTILLS
        suspects = group.started & group.missing
        for suspect in sorted(suspects):
            # Only alone is it certain who did it: in a mixed batch it may have been a stranger's prompt.
            self.suspects[suspect] = self.suspects.get(suspect, 0) + (group.alone and counts)
            self._bury(suspect)
        beyond = group.missing - group.started
        left = sorted(suspects - self._answers.keys())
        return [_Group(left, alone=True), _Group(sorted(beyond), alone=group.alone)]

    def _bury(self, suspect: int) -> None:
        """Answer a suspect that was alone with enough deaths."""
        if self.suspects[suspect] >= self._max_deaths:
            reason = "the prompt killed the device process, or outlived its deadline"
            self._answers[suspect] = Dead(reason, self.suspects[suspect])

    def result(self, prompts: int) -> DeviceResult:
        """The request's result, once every prompt has its answer."""
        return DeviceResult(
            answers=[self._answers[index] for index in range(prompts)],
            infer_s=sum(cost.infer_s for cost in self._costs),
            share_s=sum(cost.share_s for cost in self._costs),
            batches=len(self._costs),
            tokens=sum(cost.tokens for cost in self._costs),
            padded_tokens=sum(cost.padded_tokens for cost in self._costs),
            restarts=self._losses,
        )

    def _settle(self, group: _Group, answers: Mapping[int, Answer]) -> None:
        self._answers.update(answers)
        for index in answers:
            self.suspects.pop(index, None)
        group.missing.difference_update(answers)
        self._fruitless_losses = 0


def _header(request: DeviceRequest, request_id: int, group: _Group) -> Request:
    return Request(
        id=request_id,
        kind=request.kind,
        lane=request.lane,
        alone=group.alone,
        prompts=len(group.indexes),
        labels=request.labels,
        stop_ids=request.stop_ids,
        max_new_tokens=request.max_new_tokens,
        verdict_ids=request.verdict_ids,
        iteration=request.iteration,
        traceparent=tracing.traceparent(),
    )


def _pieces(indexes: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """The indexes in groups whose sizes add up to no more than a frame takes."""
    pieces: list[list[int]] = []
    room = 0
    for index in indexes:
        if sizes[index] > room:
            pieces.append([])
            room = MAX_PAYLOAD_BYTES
        pieces[-1].append(index)
        room -= sizes[index]
    return pieces
