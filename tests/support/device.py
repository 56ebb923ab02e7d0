"""Device processes for the tests: a real one kept alive as the supervisor would, and one within the test."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.messages import Lane
from worker.device.client import DeviceClient
from worker.device.engines.fake import DIRECTIVES, FakeEngine
from worker.device.heartbeat import Heartbeat
from worker.device.process import DeviceProcess
from worker.device.protocol import DeviceRequest, Kind
from worker.device.server import Server, listen
from worker.device.spec import DeviceSpec

LABELS = ((1,), (2,))


def prompt(size: int, seed: int = 1) -> array[int]:
    """A prompt of the fake engine without a directive."""
    return array("i", [(seed * 31 + at * 7) % 256 for at in range(size)])


def directive(name: str, size: int = 5) -> array[int]:
    """A prompt that tells the fake engine what to do."""
    return array("i", [DIRECTIVES[name]]) + prompt(size - 1)


def score_request(
    prompts: Sequence[array[int]], *, lane: Lane = Lane.BULK, isolate: bool = False, iteration: int = 0
) -> DeviceRequest:
    return DeviceRequest(Kind.SCORE, lane, list(prompts), labels=LABELS, isolate=isolate, iteration=iteration)


class KeptDevice:
    """A fake device process; a thread kills it when overdue and respawns it when dead, as the supervisor does."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.spec = DeviceSpec(
            guard="fake", engine="fake", socket_path=folder / "d.sock", heartbeat_path=folder / "d.pulse", **options
        )
        self.starts = 0
        self._done = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper")

    def client(self, **options: Any) -> DeviceClient:
        return DeviceClient(self.spec.socket_path, **{"reconnect_timeout_s": 30, **options})

    def _keep(self) -> None:
        process = None
        while not self._done.wait(0.005):
            if process is not None and process.hangs(time.monotonic()):
                process.kill()
            if process is None or process.process.poll() is not None:
                process = DeviceProcess(self.spec)
                self.starts += 1
        if process is not None:
            process.kill()

    def __enter__(self) -> KeptDevice:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._keeper.join()


class RecordingEngine(FakeEngine):
    """The fake engine, which notes its batches and runs only while its gate is open."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: list[list[array[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.break_on: Callable[[Sequence[array[int]]], Exception | None] = lambda _: None

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        self.batches.append(list(prompts))
        self.gate.wait()
        if error := self.break_on(prompts):
            raise error
        return super().score(prompts, labels)


class LaunchedEngine(RecordingEngine):
    """The same on a device that computes by itself: what is launched is noted at once, what is read once the gate is
    open."""

    def __init__(self, **options: Any) -> None:
        super().__init__(overlaps=True, **options)
        self.read: list[list[array[int]]] = []
        self.break_on_launch: Callable[[Sequence[array[int]]], Exception | None] = lambda _: None

    def launch(
        self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]
    ) -> Callable[[], list[tuple[float, ...]]]:
        self.batches.append(list(prompts))
        if error := self.break_on_launch(prompts):
            raise error
        read = FakeEngine.launch(self, prompts, labels)

        def read_later() -> list[tuple[float, ...]]:
            self.gate.wait()
            if error := self.break_on(prompts):
                raise error
            self.read.append(list(prompts))
            return read()

        return read_later


@contextmanager
def serving(engine: FakeEngine, folder: Path) -> Iterator[tuple[Server, Path]]:
    """A server with this engine within the test's own process; yields it and its socket."""
    server = Server(engine, Heartbeat(folder / "s.pulse"))
    socket_path = folder / "s.sock"
    listener = listen(socket_path)
    threads = [
        threading.Thread(target=server.accept, args=(listener, 0), daemon=True),
        threading.Thread(target=server.run, daemon=True),
        threading.Thread(target=server.say_alive, daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield server, socket_path
    finally:
        server.stop()
        threads[1].join()
        listener.close()
