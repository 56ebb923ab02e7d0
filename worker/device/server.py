"""The device process's loop: readers feed the waiting list, the main thread plans, announces, runs, answers.

The engine is touched by the main thread alone. A batch is announced to the clients concerned before
it runs: should it kill the process, they know whom to suspect.
"""

from __future__ import annotations

import itertools
import signal
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra import tracing
from infra.errors import DeviceError
from infra.log import get_logger
from schemas.messages import Lane
from worker.device.batching import Entry, Waiting, size_tokens
from worker.device.engines.base import DeviceLost, Engine, OutOfMemory, PartlyAnswered
from worker.device.heartbeat import Heartbeat, Pulse
from worker.device.protocol import (
    Alive,
    Answers,
    Failed,
    Header,
    Hello,
    Kind,
    Request,
    Started,
    pack_answers,
    pack_ints,
    read_frame,
    send_frame,
    unpack_rows,
)

log = get_logger(__name__)

BULK_SLICE_S: Final = 0.020
"""Longest run of a bulk batch while live items wait or arrived recently: the most that a live item waits."""
LIVE_LINGER_S: Final = 1.0
"""For how long after the last live item another one is expected."""
SMALLEST_CUT: Final = 1 / 16
"""A cut below this share of the budget would cost more throughput than it saves live latency."""
BUDGET_STEPS: Final = 64
"""After running out of memory the budget grows back to its full size in so many good batches."""
ACCEPT_PAUSE_S: Final = 0.1
SEND_TIMEOUT_S: Final = 5
"""A client that reads nothing for this long is dropped: it must not hold up the device."""
MAX_REASON: Final = 500
"""Characters of a reason: an engine's error message may hold a whole stack."""
ALIVE_EVERY_S: Final = 1.0
"""How often a client that waits is told that we live; it gives up on a process that is silent for some of these."""
RATE_WEIGHT: Final = 0.2
"""Weight of the newest batch in the measured rate."""


class _Client:
    """One connection. Sending never raises: a client that is gone is found out by its reader."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self.stream = connection.makefile("rb")
        self.gone = False
        self._connection = connection
        self._lock = threading.Lock()
        self._unanswered = 0

    @property
    def waits(self) -> bool:
        """True while prompts of it have no answer."""
        return self._unanswered > 0

    def expect(self, prompts: int) -> None:
        """Note that so many prompts came."""
        with self._lock:
            self._unanswered += prompts

    def send(self, header: Header, payload: bytes = b"", *, answered: int = 0) -> None:
        with self._lock:
            self._unanswered -= answered
            if self.gone:
                return
            try:
                send_frame(self._connection, header, payload)
            except OSError:
                self._hang_up()

    def close(self) -> None:
        with self._lock:
            self._hang_up()

    def _hang_up(self) -> None:
        if not self.gone:
            self.gone = True
            # Wakes the reader, which owns the stream; closing here would pull it away under its feet.
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("client_was_gone")
            self._connection.close()


@dataclass(slots=True, eq=False)
class _Ask:
    """A request in hand."""

    client: _Client
    request: Request


@dataclass(slots=True, eq=False)
class _Prompt:
    """One prompt of a request."""

    ask: _Ask
    index: int
    ids: array[int]


_Batch = list[Entry[_Prompt]]
_Place = tuple[int, int]
"""A prompt's index in its request, and its row in the batch."""


class Server:
    """Serves one engine. `run` is called by the thread that owns the engine; everything else is thread-safe."""

    def __init__(self, engine: Engine, heartbeat: Heartbeat, *, batch_deadline_s: float = 120.0) -> None:
        self._engine = engine
        self._info = engine.info
        self._heartbeat = heartbeat
        self._batch_deadline_s = batch_deadline_s
        self._changed = threading.Condition()
        self.waiting: Waiting[_Prompt] = Waiting(packs=engine.info.packs)
        self._clients: set[_Client] = set()
        self._tickets = itertools.count()
        self._stopping = False
        self._live_expected_until = 0.0
        self._budget = engine.info.max_batch_tokens
        self._bulk_tokens_per_s = 0.0

    def stop(self) -> None:
        """Let `run` return after the batch in hand is answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def accept(self, listener: socket.socket, pid: int) -> None:
        """Take connections until the listener is closed; each gets a reader thread."""
        hello = Hello(pid=pid, info=self._info)
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if listener.fileno() < 0:
                    return
                # Out of file descriptors, say: a deaf server would look alive to everybody.
                log.error("accept_failed", error=str(error))
                time.sleep(ACCEPT_PAUSE_S)
                continue
            threading.Thread(target=self._read, args=(_Client(connection), hello), daemon=True).start()

    def say_alive(self) -> None:
        """Tell those who wait that this process lives, every second, for ever."""
        while True:
            time.sleep(ALIVE_EVERY_S)
            with self._changed:
                waiting = [client for client in self._clients if client.waits]
            for client in waiting:
                client.send(Alive())

    def run(self) -> None:
        """Run batches until stopped.

        Raises:
            DeviceLost: the process must end.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or bool(self.waiting))
                if self._stopping:
                    return
                bulk_cut: int | None = None
                if self.waiting.waits(Lane.LIVE) or time.monotonic() <= self._live_expected_until:
                    # The tokens that run in one time slice.
                    slice_tokens = self._bulk_tokens_per_s * BULK_SLICE_S
                    bulk_cut = int(max(slice_tokens, self._info.max_batch_tokens * SMALLEST_CUT))
                batch = self.waiting.take(
                    max_tokens=self._budget, max_items=self._info.max_batch_items, bulk_cut_tokens=bulk_cut
                )
            pending = [batch]
            while pending:
                pending.extend(self._run(pending.pop()))

    # Readers: one thread per connection.

    def _read(self, client: _Client, hello: Hello) -> None:
        with self._changed:
            self._clients.add(client)
        client.send(hello)
        try:
            while True:
                header, payload = read_frame(client.stream)
                self._admit(client, header, payload)
        except OSError:
            log.debug("client_left")
        except DeviceError as error:
            log.warning("client_dropped", reason=str(error))
        finally:
            client.close()
            client.stream.close()
            with self._changed:
                self._clients.discard(client)
                self.waiting.drop(lambda prompt: prompt.ask.client is client)

    def _admit(self, client: _Client, header: Header, payload: bytes) -> None:
        if not isinstance(header, Request):
            raise DeviceError(f"a client sent a frame of type {header.type}")
        if header.kind is Kind.SCORE and not header.labels:
            raise DeviceError("a request to score names no labels")
        ask = _Ask(client, header)
        prompts = [_Prompt(ask, index, ids) for index, ids in enumerate(unpack_rows(payload, header.prompts))]
        client.expect(len(prompts))
        room = self._info.context_tokens - header.max_new_tokens
        fitting = [prompt for prompt in prompts if 0 < len(prompt.ids) <= room]
        known = self._info.prefix_tokens if header.kind is Kind.SCORE else 0
        with self._changed:
            for prompt in fitting:
                ids = (prompt.ids.tobytes(), header.iteration)
                key = (
                    *(header.kind, header.labels, header.stop_ids, header.max_new_tokens, header.verdict_ids),
                    ids if header.alone else None,
                )
                tokens = max(1, len(prompt.ids) - known) + header.max_new_tokens
                self.waiting.add(Entry(next(self._tickets), header.lane, tokens, key, ids, [prompt]))
            if header.lane is Lane.LIVE:
                self._live_expected_until = time.monotonic() + LIVE_LINGER_S
            self._changed.notify()
        if len(fitting) < len(prompts):
            refused = [prompt.index for prompt in prompts if not 0 < len(prompt.ids) <= room]
            reason = f"the prompt is empty or longer than the engine's context less the new tokens ({room:,})"
            client.send(Failed(id=header.id, reason=reason), pack_ints(refused), answered=len(refused))

    # The engine's thread.

    def _run(self, batch: _Batch) -> list[_Batch]:
        """Run one batch and answer it; returns the smaller batches to run in its place if it failed."""
        asks = _by_ask(batch)
        for ask, places in asks.items():
            ask.client.send(Started(id=ask.request.id), pack_ints([index for index, _ in places]))
        started = time.monotonic()
        self._heartbeat.begin(started + self._batch_deadline_s)
        reasons: Mapping[int, str] = {}
        try:
            # Linked to those who asked: a batch runs for many traces at once and is part of none.
            with tracing.batch(
                "libra.device.batch",
                (ask.request.traceparent for ask in asks),
                lane=batch[0].lane.value,
                items=sum(len(entry.items) for entry in batch),
                rows=len(batch),
                tokens=sum(entry.tokens for entry in batch),
            ):
                rows = self._infer(batch)
        except PartlyAnswered as partly:
            rows, reasons = partly.answers, partly.reasons
        except (OutOfMemory, MemoryError):
            self._heartbeat.end(Pulse(busy_s=time.monotonic() - started))
            if len(batch) == 1:
                return _alone(batch, "the prompt alone does not fit into the device's memory")
            self._budget = max(1, min(self._budget, size_tokens(batch, packs=self._info.packs) // 2))
            log.warning("out_of_memory", rows=len(batch), budget_tokens=self._budget)
            middle = len(batch) // 2
            return [batch[middle:], batch[:middle]]
        except DeviceLost:
            raise
        except Exception as error:  # whatever an engine raises, every prompt must get an answer
            log.exception("batch_failed", rows=len(batch))
            self._heartbeat.end(Pulse(busy_s=time.monotonic() - started))
            return _alone(batch, f"the engine failed: {type(error).__name__}: {error}"[:MAX_REASON])
        infer_s = time.monotonic() - started
        self._account(batch, infer_s)
        for at, reason in reasons.items():
            _refuse(batch[at], reason)
        answered = {ask: [place for place in places if place[1] not in reasons] for ask, places in asks.items()}
        self._answer(batch, answered, rows, infer_s)
        return []

    def _infer(self, batch: _Batch) -> Sequence[Sequence[float]]:
        request = batch[0].items[0].ask.request
        prompts = [entry.items[0].ids for entry in batch]
        rows: Sequence[Sequence[float]]
        if request.kind is Kind.SCORE:
            rows = self._engine.score(prompts, request.labels)
        elif request.kind is Kind.CLASSIFY:
            rows = self._engine.classify(prompts)
        else:
            rows = self._engine.generate(
                prompts,
                max_new_tokens=request.max_new_tokens,
                stop_ids=request.stop_ids,
                verdict_ids=request.verdict_ids,
            )
        if len(rows) != len(batch):
            raise ValueError(f"the engine gave {len(rows)} answers to {len(batch)} prompts")
        return rows

    def _account(self, batch: _Batch, infer_s: float) -> None:
        padded = size_tokens(batch, packs=self._info.packs)
        if batch[0].lane is Lane.BULK:
            # Live batches are small, so that their fixed cost would make the device look slow.
            rate = padded / max(infer_s, 1e-6)
            self._bulk_tokens_per_s += (rate - self._bulk_tokens_per_s) * (
                RATE_WEIGHT if self._bulk_tokens_per_s else 1
            )
        full = self._info.max_batch_tokens
        self._budget = min(full, self._budget + full // BUDGET_STEPS + 1)
        done = Pulse(
            items=sum(len(entry.items) for entry in batch),
            rows=len(batch),
            tokens=sum(entry.tokens for entry in batch),
            padded_tokens=padded,
            busy_s=infer_s,
            budget_tokens=self._budget,
        )
        self._heartbeat.end(done)

    def _answer(
        self, batch: _Batch, asks: dict[_Ask, list[_Place]], rows: Sequence[Sequence[float]], infer_s: float
    ) -> None:
        padded, tokens = size_tokens(batch, packs=self._info.packs), sum(entry.tokens for entry in batch)
        shares_s = [infer_s * entry.tokens / tokens / len(entry.items) for entry in batch]
        for ask, places in asks.items():
            if not places:
                continue
            header = Answers(
                id=ask.request.id,
                kind=ask.request.kind,
                count=len(places),
                infer_s=infer_s,
                share_s=sum(shares_s[row] for _, row in places),
                batch_rows=len(batch),
                tokens=tokens,
                padded_tokens=padded,
            )
            indexes = [index for index, _ in places]
            payload = pack_answers(header.kind, indexes, [rows[at] for _, at in places])
            ask.client.send(header, payload, answered=len(places))


def _by_ask(batch: _Batch) -> dict[_Ask, list[_Place]]:
    """Of each request: its prompts in the batch by index, and the rows they ride in."""
    asks: dict[_Ask, list[_Place]] = {}
    for row, entry in enumerate(batch):
        for prompt in entry.items:
            asks.setdefault(prompt.ask, []).append((prompt.index, row))
    return asks


def _alone(batch: _Batch, reason: str) -> list[_Batch]:
    """One batch per prompt; a prompt that was alone already is answered as failed instead."""
    if len(batch) > 1:
        return [[entry] for entry in batch]
    _refuse(batch[0], reason)
    return []


def _refuse(entry: Entry[_Prompt], reason: str) -> None:
    """Say that a prompt has no answer, to all who wait for it."""
    for prompt in entry.items:
        header = Failed(id=prompt.ask.request.id, reason=reason[:MAX_REASON])
        prompt.ask.client.send(header, pack_ints([prompt.index]), answered=1)


def serve(
    socket_path: Path,
    engine: Engine,
    *,
    heartbeat: Heartbeat,
    pid: int,
    batch_deadline_s: float = 120.0,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve an engine on a Unix socket until SIGTERM; call from the main thread. See `listen` and `Server.run`."""
    server = Server(engine, heartbeat, batch_deadline_s=batch_deadline_s)
    # By a thread of its own: the handler interrupts the main thread, which may hold the lock or be about to wait.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    with listen(socket_path) as listener:
        threading.Thread(target=server.accept, args=(listener, pid), daemon=True).start()
        threading.Thread(target=server.say_alive, daemon=True).start()
        heartbeat.ready()
        on_ready()
        server.run()
    socket_path.unlink(missing_ok=True)


def listen(socket_path: Path) -> socket.socket:
    """A listening Unix socket that only this user can reach; a stale one is replaced.

    Raises:
        DeviceError: the path is too long for a socket, or not writable.
    """
    socket_path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(socket_path))
        socket_path.chmod(0o600)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise DeviceError(f"cannot listen on {socket_path}: {error}") from error
    return listener
