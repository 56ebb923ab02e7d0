"""The device process's loop: readers feed the waiting list, the main thread plans, announces, runs, answers.

The engine is touched by the main thread alone. A batch is announced to the clients concerned before
it runs: should it kill the process, they know whom to suspect. An engine that can be launched (CUDA) gets its
next batch while it still computes the one before (docs/decisions/0065).
"""

from __future__ import annotations

import itertools
import signal
import socket
import struct
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra import tracing
from infra.errors import DeviceError
from infra.log import get_logger
from schemas.messages import Lane
from worker.device.batching import Entry, Waiting, size_tokens
from worker.device.engines.base import DeviceLost, Engine, Launches, OutOfMemory, PartlyAnswered
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
from worker.device.slices import BatchTimes

log = get_logger(__name__)

BULK_SLICE_S: Final = 0.020
"""Run of a bulk batch while live items wait or arrived recently, which a live item waits for; see `BatchTimes`."""
LIVE_LINGER_S: Final = 1.0
"""For how long after the last live item another one is expected."""
SMALLEST_CUT: Final = 1 / 16
"""A cut below this share of the budget would cost more throughput than it saves live latency."""
BUDGET_STEPS: Final = 64
"""After running out of memory the budget grows back to its full size in so many good batches; each further time it
takes twice as many, since a budget that once was too large will be so again."""
MOST_BUDGET_STEPS: Final = 1 << 14
DEADLINE_TOKENS: Final = 64
"""A deadline is for a batch that writes up to so many new tokens a prompt; one that writes more has longer."""
JUST_IN_TIME: Final = 2.0
"""The next batch is launched so many launches before the running one should end: until then it may still grow."""
LATE_S: Final = 0.001
LATE_LAUNCHES: Final = 0.25
"""A batch that was waited for and then read within so long, or so many launches, had ended before."""
ACCEPT_PAUSE_S: Final = 0.1
SEND_TIMEOUT_S: Final = 5
"""A client that reads nothing for this long is dropped: it must not hold up the device."""
MAX_REASON: Final = 500
"""Characters of a reason: an engine's error message may hold a whole stack."""
ALIVE_EVERY_S: Final = 1.0
"""How often a client that waits is told that we live; it gives up on a process that is silent for some of these."""


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


Rows = Sequence[Sequence[float]]
_Batch = list[Entry[_Prompt]]
_Place = tuple[int, int]
"""A prompt's index in its request, and its row in the batch."""


@dataclass(slots=True, eq=False)
class _Flight:
    """A batch that was announced and, where the engine can be launched, launched: `read` waits for its rows."""

    batch: _Batch
    asks: dict[_Ask, list[_Place]]
    started: float
    cut: bool
    """A bulk batch that was kept short for live items' sake."""
    read: Callable[[], Rows]
    launch_s: float = 0.0
    waited: bool = False
    """The time after which it should be looked at has passed, and no live item cut it short."""
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = size_tokens(self.batch)


class Server:
    """Serves one engine. `run` is called by the thread that owns the engine; everything else is thread-safe."""

    def __init__(
        self,
        engine: Engine,
        heartbeat: Heartbeat,
        *,
        batch_deadline_s: float = 120.0,
        deadline_tokens: int | None = DEADLINE_TOKENS,
    ) -> None:
        """`batch_deadline_s` is for `deadline_tokens` new tokens; None: for any number."""
        self._engine = engine
        self._launcher = engine if isinstance(engine, Launches) and engine.info.overlaps else None
        self._info = engine.info
        self._heartbeat = heartbeat
        self._batch_deadline_s = batch_deadline_s
        self._deadline_tokens = deadline_tokens
        self._changed = threading.Condition()
        self.waiting: Waiting[_Prompt] = Waiting()
        self._clients: set[_Client] = set()
        self._tickets = itertools.count()
        self._stopping = False
        self._live_expected_until = 0.0
        self._budget = engine.info.max_batch_tokens
        self._budget_steps = BUDGET_STEPS // 2
        self.times = {kind: BatchTimes() for kind in Kind}
        self._flying: deque[_Flight] = deque()
        """Batches that were begun and not finished, the oldest first: two at most."""
        self._done_at = 0.0

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
        pending: list[tuple[_Batch, bool]] = []
        flight: _Flight | None = None
        while True:
            batch, cut = pending.pop() if pending else self._next_batch(flight)
            if flight is not None and (not batch or not self._can_launch(batch)):
                pending += [(again, flight.cut) for again in self._finish(flight)]
                flight = None
            if not batch:
                if self._stopping and not pending:
                    return
                continue
            following = self._begin(batch, cut=cut)
            if flight is not None:
                pending += [(again, flight.cut) for again in self._finish(flight)]
            flight = following
            if not self._can_launch(batch):
                pending += [(again, cut) for again in self._finish(flight)]
                flight = None

    def _next_batch(self, flight: _Flight | None) -> tuple[_Batch, bool]:
        """The next batch to run and whether it was cut; empty when stopping, or when none came while one is in flight.

        While one is in flight it may grow until it must be launched, unless a live item waits; one that is full waits
        as well, since a live item that comes meanwhile is then launched before it.
        """
        with self._changed:
            if flight is None:
                self._changed.wait_for(lambda: self._stopping or bool(self.waiting))
            else:
                times = self.times[_kind(flight.batch)]
                launch_at = flight.started + times.look_after_s(flight.tokens) - JUST_IN_TIME * times.launch_s
                left_s = launch_at - time.monotonic()
                flight.waited = left_s > 0 and not self._changed.wait_for(self._is_urgent, timeout=left_s)
            if self._stopping or not self.waiting:
                return [], False
            cut = self._bulk_cut()
            batch = self.waiting.take(
                max_tokens=self._budget, max_items=self._info.max_batch_items, bulk_cut_tokens=cut
            )
            return batch, cut is not None and batch[0].lane is Lane.BULK

    def _is_urgent(self) -> bool:
        return self._stopping or self.waiting.waits(Lane.LIVE)

    def _bulk_cut(self) -> int | None:
        """Tokens of a bulk batch while live items wait or are expected; None: as many as the budget allows."""
        if not self.waiting.waits(Lane.LIVE) and time.monotonic() > self._live_expected_until:
            return None
        times = self.times[Kind.SCORE if self.times[Kind.SCORE].line()[1] else Kind.CLASSIFY]
        slice_tokens = times.slice_tokens(BULK_SLICE_S, overlaps=self._launcher is not None)
        return int(max(slice_tokens, self._info.max_batch_tokens * SMALLEST_CUT))

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
                entry = Entry(next(self._tickets), header.lane, tokens, key, ids, [prompt])
                # Only scores are packed: whoever writes is padded to the longest prompt, and keeps states of each id.
                entry.packs = self._info.packs and header.kind is Kind.SCORE
                entry.most_tokens = self._info.max_generate_tokens if header.kind is Kind.GENERATE else None
                self.waiting.add(entry)
            if header.lane is Lane.LIVE:
                self._live_expected_until = time.monotonic() + LIVE_LINGER_S
            self._changed.notify()
        if len(fitting) < len(prompts):
            refused = [prompt.index for prompt in prompts if not 0 < len(prompt.ids) <= room]
            reason = f"the prompt is empty or longer than the engine's context less the new tokens ({room:,})"
            client.send(Failed(id=header.id, reason=reason), pack_ints(refused), answered=len(refused))

    # The engine's thread.

    def _can_launch(self, batch: _Batch) -> bool:
        """Whether it may be in flight beside another: not one that runs alone, whose death is to be its own doing."""
        request = batch[0].items[0].ask.request
        return self._launcher is not None and request.kind is Kind.SCORE and not request.alone

    def _begin(self, batch: _Batch, *, cut: bool) -> _Flight:
        """Announce a batch, and launch it where the engine can be launched."""
        asks = _by_ask(batch)
        for ask, places in asks.items():
            ask.client.send(Started(id=ask.request.id), pack_ints([index for index, _ in places]))
        flight = _Flight(batch, asks, time.monotonic(), cut, read=lambda: self._infer(batch))
        self._flying.append(flight)
        if len(self._flying) == 1:
            self._heartbeat.begin(flight.started + self._deadline_s(batch))
        if self._launcher is not None and self._can_launch(batch):
            try:
                flight.read = self._launcher.launch(_prompts(batch), batch[0].items[0].ask.request.labels)
            except Exception as error:  # noqa: BLE001 - it is raised again where it is dealt with
                flight.read = _raising(error)
            flight.launch_s = time.monotonic() - flight.started
        return flight

    def _deadline_s(self, batch: _Batch) -> float:
        written = batch[0].items[0].ask.request.max_new_tokens
        return self._batch_deadline_s * max(1.0, written / self._deadline_tokens if self._deadline_tokens else 1.0)

    def _finish(self, flight: _Flight) -> list[_Batch]:
        """Read a batch's rows and answer it; returns the smaller batches to run in its place if it failed."""
        batch, asks = flight.batch, flight.asks
        reasons: Mapping[int, str] = {}
        read_at = time.monotonic()
        begun = max(flight.started, self._done_at)
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
                rows = _one_each(flight.read(), batch)
        except PartlyAnswered as partly:
            rows, reasons = partly.answers, partly.reasons
        except (OutOfMemory, MemoryError):
            self._note_done(flight, Pulse(busy_s=time.monotonic() - begun))
            if len(batch) == 1:
                return _alone(batch, "the prompt alone does not fit into the device's memory")
            if self._budget == self._info.max_batch_tokens:  # it had come back, or never was less
                self._budget_steps = min(MOST_BUDGET_STEPS, 2 * self._budget_steps)
            self._budget = max(1, min(self._budget, flight.tokens // 2))
            log.warning("out_of_memory", rows=len(batch), budget_tokens=self._budget)
            middle = len(batch) // 2
            return [batch[middle:], batch[:middle]]
        except DeviceLost:
            raise
        except Exception as error:  # whatever an engine raises, every prompt must get an answer
            log.exception("batch_failed", rows=len(batch))
            self._note_done(flight, Pulse(busy_s=time.monotonic() - begun))
            return _alone(batch, f"the engine failed: {type(error).__name__}: {error}"[:MAX_REASON])
        read_s = time.monotonic() - read_at
        infer_s = time.monotonic() - begun
        late = flight.waited and read_s < max(LATE_S, LATE_LAUNCHES * flight.launch_s)
        self._account(flight, infer_s, late=late)
        for at, reason in reasons.items():
            _refuse(batch[at], reason)
        answered = {ask: [place for place in places if place[1] not in reasons] for ask, places in asks.items()}
        self._answer(flight, answered, rows, infer_s)
        return []

    def _infer(self, batch: _Batch) -> Rows:
        request = batch[0].items[0].ask.request
        prompts = _prompts(batch)
        if request.kind is Kind.SCORE:
            return self._engine.score(prompts, request.labels)
        if request.kind is Kind.CLASSIFY:
            return self._engine.classify(prompts)
        return self._engine.generate(
            prompts,
            max_new_tokens=request.max_new_tokens,
            stop_ids=request.stop_ids,
            verdict_ids=request.verdict_ids,
        )

    def _account(self, flight: _Flight, infer_s: float, *, late: bool) -> None:
        batch = flight.batch
        if late:
            self.times[_kind(batch)].note_late()
        elif not flight.cut:
            self.times[_kind(batch)].note(flight.tokens, infer_s, flight.launch_s)
        full = self._info.max_batch_tokens
        self._budget = min(full, self._budget + full // self._budget_steps + 1)
        self._note_done(
            flight,
            Pulse(
                items=sum(len(entry.items) for entry in batch),
                rows=len(batch),
                tokens=sum(entry.tokens for entry in batch),
                padded_tokens=flight.tokens,
                busy_s=infer_s,
                budget_tokens=self._budget,
            ),
        )

    def _note_done(self, flight: _Flight, pulse: Pulse) -> None:
        self._done_at = time.monotonic()
        self._flying.remove(flight)
        self._heartbeat.end(pulse)
        if self._flying:  # only now does the next one have the device for itself
            self._heartbeat.begin(self._done_at + self._deadline_s(self._flying[0].batch))

    def _answer(self, flight: _Flight, asks: dict[_Ask, list[_Place]], rows: Rows, infer_s: float) -> None:
        batch, tokens = flight.batch, sum(entry.tokens for entry in flight.batch)
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
                padded_tokens=flight.tokens,
            )
            indexes = [index for index, _ in places]
            payload = pack_answers(header.kind, indexes, [rows[at] for _, at in places])
            ask.client.send(header, payload, answered=len(places))


def _kind(batch: _Batch) -> Kind:
    return batch[0].items[0].ask.request.kind


def _prompts(batch: _Batch) -> list[array[int]]:
    return [entry.items[0].ids for entry in batch]


def _one_each(rows: Rows, batch: _Batch) -> Rows:
    if len(rows) != len(batch):
        raise ValueError(f"the engine gave {len(rows)} answers to {len(batch)} prompts")
    return rows


def _raising(error: Exception) -> Callable[[], Rows]:
    def read() -> Rows:
        raise error

    return read


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
    deadline_tokens: int | None = DEADLINE_TOKENS,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve an engine on a Unix socket until SIGTERM; call from the main thread. See `listen` and `Server.run`."""
    server = Server(engine, heartbeat, batch_deadline_s=batch_deadline_s, deadline_tokens=deadline_tokens)
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
