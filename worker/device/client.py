"""The client side of the device socket. Blocking, thread-safe, survives the death of the device process.

When the connection is lost, prompts announced as started but unanswered are suspects. They are sent
again, one batch each: the next death names the prompt that kills, all others get answers. Halving the
suspects again and again would run fewer batches but cost a death per halving, and a death costs a
model's load or a deadline: for 200 suspects 10 deaths instead of 3.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from infra import tracing
from infra.errors import DeviceError
from worker.device.engines.base import EngineInfo
from worker.device.protocol import (
    PROTOCOL_VERSION,
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


class DeviceClient:
    """Each calling thread has a connection of its own, opened when first needed.

    `max_deaths`: how often a prompt may kill the device process alone before it is dead.
    `reconnect_timeout_s`: how long to wait for a device process that is not there (it loads a model).
    """

    def __init__(self, socket_path: Path | str, *, max_deaths: int = 2, reconnect_timeout_s: float = 300.0) -> None:
        self._socket_path = Path(socket_path)
        self._max_deaths = max_deaths
        self._reconnect_timeout_s = reconnect_timeout_s
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._ids = itertools.count()
        self._closed = threading.Event()

    @property
    def info(self) -> EngineInfo:
        """The engine behind the socket, as it said when this thread last connected. It waits as `run` does."""
        return self._connected().info

    def run(self, request: DeviceRequest) -> DeviceResult:
        """Answer every prompt.

        Raises:
            DeviceError: no device process came within the timeout, or it speaks another protocol.
        """
        ledger = _Ledger()
        todo = [_Group(range(len(request.prompts)), alone=request.isolate)]
        while todo:
            group = todo.pop()
            if not group.missing:
                continue
            connection = self._connected()
            header = Request(
                id=next(self._ids),
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
            try:
                connection.send(header, pack_rows([request.prompts[index] for index in group.indexes]))
                while group.missing:
                    ledger.take(group, *connection.read())
            except OSError as error:
                self._forget(connection)
                todo.extend(ledger.lost(group, error, self._max_deaths))
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
                connection = _Connection(self._socket_path)
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise DeviceError(
                        f"no device process on {self._socket_path} for {self._reconnect_timeout_s:g} s: {error}"
                    ) from error
                self._closed.wait(RETRY_S)
                continue
            self._local.connection = connection
            with self._lock:
                self._connections.add(connection)
        return connection

    def _forget(self, connection: _Connection) -> None:
        connection.close()
        self._local.connection = None
        with self._lock:
            self._connections.discard(connection)


class _Connection:
    """One connection to the device process, greeted."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(socket_path))
            self._stream = self._socket.makefile("rb")
            hello, _ = self.read()
        except BaseException:
            self._socket.close()
            raise
        if not isinstance(hello, Hello) or hello.version != PROTOCOL_VERSION:
            self._socket.close()
            raise DeviceError(f"the device process speaks another protocol than version {PROTOCOL_VERSION}")
        self.info = hello.info

    def send(self, header: Header, payload: bytes) -> None:
        send_frame(self._socket, header, payload)

    def read(self) -> tuple[Header, bytes]:
        return read_frame(self._stream)

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

    def __init__(self) -> None:
        self._answers: dict[int, Answer] = {}
        self._deaths: Counter[int] = Counter()
        self._costs: list[Answers] = []
        self._losses = 0
        self._fruitless_losses = 0

    def take(self, group: _Group, header: Header, payload: bytes) -> None:
        """Note one frame."""
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

    def lost(self, group: _Group, error: OSError, max_deaths: int) -> list[_Group]:
        """Note that the device process died; returns those to send again: the last, beyond suspicion, goes first."""
        self._losses += 1
        self._fruitless_losses = 0 if group.started else self._fruitless_losses + 1
        if self._fruitless_losses >= MAX_FRUITLESS_LOSSES:
            raise DeviceError(f"the device process died {self._losses} times, other prompts' doing") from error
        suspects = group.started & group.missing
        # Only alone is it certain who did it: in a mixed batch it may have been a stranger's prompt.
        for suspect in sorted(suspects) if group.alone else ():
            self._deaths[suspect] += 1
            attempts = self._deaths[suspect]
            if attempts >= max_deaths:
                reason = "the prompt killed the device process, or outlived its deadline"
                self._answers[suspect] = Dead(reason, attempts)
                suspects.discard(suspect)
        beyond = group.missing - group.started
        return [_Group(sorted(suspects), alone=True), _Group(sorted(beyond), alone=group.alone)]

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
        group.missing.difference_update(answers)
        self._fruitless_losses = 0
