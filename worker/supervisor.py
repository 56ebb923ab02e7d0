"""`libra fleet worker`: per device one device process and two consumers, kept alive, drained on SIGTERM.

Consumers start only once the model is loaded, so that a worker which cannot load takes no work.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from infra.broker.app import queue_of
from infra.coordination.store import CoordinationStore
from infra.errors import DeviceError, UsageError
from infra.log import get_logger
from infra.process import python_module, stop
from infra.settings import Settings
from schemas.fleet import Announcement
from schemas.messages import Lane
from worker.consumer.app import ConsumerSpec, read_fingerprints
from worker.consumer.tasks import holder_of
from worker.device.heartbeat import Pace, Pulse
from worker.device.spec import DeviceSpec
from worker.device.watch import DeviceProcess

_TICK_S: Final = 0.1
_ANNOUNCE_EVERY_S: Final = 5.0
_LOAD_TIMEOUT_S: Final = 1800.0
_STEADY_AFTER_S: Final = 60.0
_MAX_QUICK_RESTARTS: Final = 10
_DEVICE_GRACE_S: Final = 10.0
_CHILD_GRACE_S: Final = 1.0
_GIVE_BACK_S: Final = 5.0

log = get_logger(__name__)


@dataclass
class _Restarts:
    """Counts restarts in quick succession, so that a process that cannot live is not started for ever."""

    count: int = 0
    last_start: float = field(default_factory=time.monotonic)

    def again(self) -> bool:
        """Note a restart; False where there were too many."""
        now = time.monotonic()
        self.count = 1 if now - self.last_start > _STEADY_AFTER_S else self.count + 1
        self.last_start = now
        return self.count <= _MAX_QUICK_RESTARTS


class _StopLoadingError(Exception):
    """A signal came while the models were loading."""


class _Post:
    """One device: its device process and its two consumers."""

    def __init__(
        self,
        spec: DeviceSpec,
        consumers: Sequence[ConsumerSpec],
        *,
        worker_id: str,
        visible: str,
        env: dict[str, str],
        coordination: CoordinationStore,
    ) -> None:
        self.worker_id = worker_id
        self._coordination = coordination
        self._device_spec = spec
        self._visible = visible
        self._consumer_specs = consumers
        self._env = env
        self._device: DeviceProcess | None = None
        self._consumers: dict[Lane, subprocess.Popen[bytes]] = {}
        self._device_restarts = _Restarts()
        self._pace = Pace()
        self._consumer_restarts = {spec.lane: _Restarts() for spec in consumers}

    def start_device(self) -> None:
        """Start loading the model."""
        self._device = DeviceProcess(self._device_spec, visible_devices=self._visible)

    def wait_ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            GuardError: it cannot be loaded.
            DeviceError: its process died, or took too long.
        """
        if self._device is not None:
            self._device.wait_ready(_LOAD_TIMEOUT_S)

    def start_consumers(self) -> None:
        """Start both consumers; the device process is ready."""
        for spec in self._consumer_specs:
            self._start(spec)

    def _start(self, spec: ConsumerSpec) -> None:
        self._consumers[spec.lane] = subprocess.Popen(
            python_module("worker.consumer.app", spec.to_argument()),
            env={**self._env, "LIBRA_PARENT_PID": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the supervisor, which drains in order
        )

    def keep_device(self) -> None:
        """Kill a stuck device process and replace a dead one.

        Raises:
            DeviceError: it died too often in a row.
        """
        device = self._device
        if device is None:
            return
        if device.overdue(time.monotonic()):
            log.error("batch_overdue", worker=self.worker_id)
            device.kill()
        if device.alive():
            return
        log.error("device_process_died", worker=self.worker_id, exit_code=device.exit_code)
        if not self._device_restarts.again():
            raise DeviceError(f"the device process of {self.worker_id} died {_MAX_QUICK_RESTARTS} times in a row")
        self.start_device()

    def keep_consumers(self) -> None:
        """Respawn a consumer that died.

        Raises:
            DeviceError: it died too often in a row.
        """
        for spec in self._consumer_specs:
            process = self._consumers[spec.lane]
            if process.poll() is None:
                continue
            log.error("consumer_died", worker=self.worker_id, lane=spec.lane.value, exit_code=process.returncode)
            if not self._consumer_restarts[spec.lane].again():
                raise DeviceError(f"the {spec.lane} consumer of {self.worker_id} died too often in a row")
            self._give_back(spec, process.pid)
            self._start(spec)

    def _give_back(self, spec: ConsumerSpec, pid: int) -> threading.Thread:
        """Put what a dead consumer held back on its queue.

        By a thread of its own: whoever asks must not wait while the broker is away.
        """
        thread = threading.Thread(target=self._try_to_give_back, args=(spec, pid), daemon=True)
        thread.start()
        return thread

    def _try_to_give_back(self, spec: ConsumerSpec, pid: int) -> None:
        try:
            given = self._coordination.give_back(queue_of(spec.guard, spec.lane), holder_of(self.worker_id, pid))
        except Exception as error:  # noqa: BLE001 - a thread's edge: where it fails, the chunks' lease runs out
            log.warning("give_back_failed", worker=self.worker_id, lane=spec.lane.value, error=str(error))
            return
        if given:
            log.info("chunks_given_back", worker=self.worker_id, lane=spec.lane.value, chunks=given)

    def drain(self) -> None:
        """Ask the consumers to take nothing new and finish what they hold."""
        for process in self._consumers.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def drained(self) -> bool:
        """Whether both consumers have ended."""
        return all(process.poll() is not None for process in self._consumers.values())

    def close(self) -> None:
        """End what still lives, and give back what a consumer held that did not end by itself."""
        for spec in self._consumer_specs:
            process = self._consumers.get(spec.lane)
            if process is not None and stop(process, grace_s=_CHILD_GRACE_S) != 0:
                self._give_back(spec, process.pid).join(_GIVE_BACK_S)
        if self._device is not None:
            self._device.stop(_DEVICE_GRACE_S)

    def announcement(self, guard: str, state: str) -> Announcement:
        """The device as it is now, with what it has done since it started and over the last minute."""
        pulse = self._device.stats() if self._device else Pulse()
        return Announcement(
            id=self.worker_id,
            kind="worker",
            state=state,
            pid=os.getpid(),
            version=version("libra-fleet"),
            guard=guard,
            device=self._visible or self._device_spec.device,
            fingerprints=read_fingerprints(self._device_spec.socket_path),
            batches=pulse.batches,
            items=pulse.items,
            rows=pulse.rows,
            tokens=pulse.tokens,
            padded_tokens=pulse.padded_tokens,
            busy_s=round(pulse.busy_s, 3),
            budget_tokens=pulse.budget_tokens or self._device_spec.max_batch_tokens,
            **self._pace.look(time.monotonic(), pulse),
        )


class Supervisor:
    """Runs the posts of one machine until told to stop."""

    def __init__(self, posts: Sequence[_Post], coordination: CoordinationStore, *, guard: str, drain_s: float) -> None:
        self._posts = posts
        self._coordination = coordination
        self._guard = guard
        self._drain_s = drain_s
        self._signals = 0
        self._state = "loading"

    def run(self) -> None:
        """Load, work, and on SIGTERM or SIGINT drain; a second signal ends at once.

        Raises:
            DeviceError: a device process cannot load its model, or something died too often in a row.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        done = threading.Event()
        announcer = threading.Thread(target=self._announce_until, args=(done,), daemon=True)
        try:
            announcer.start()
            self._load()
            while not self._signals:
                for post in self._posts:
                    post.keep_device()
                    post.keep_consumers()
                time.sleep(_TICK_S)
            self._drain()
        except _StopLoadingError:
            log.info("stopped_while_loading")
        finally:
            done.set()
            for post in self._posts:
                post.close()
            self._withdraw()

    def _on_signal(self, *_: object) -> None:
        self._signals += 1
        if self._state == "loading":
            raise _StopLoadingError

    def _load(self) -> None:
        for post in self._posts:
            post.start_device()
        for post in self._posts:
            post.wait_ready()
        self._state = "ready"
        for post in self._posts:
            post.start_consumers()
        self._announce()
        log.info("worker_ready", guard=self._guard, devices=len(self._posts))

    def _drain(self) -> None:
        self._state = "draining"
        log.info("worker_draining", grace_s=self._drain_s)
        for post in self._posts:
            post.drain()
        deadline = time.monotonic() + self._drain_s
        while not all(post.drained() for post in self._posts):
            if self._signals > 1 or time.monotonic() > deadline:
                log.warning("drain_cut_short")
                return
            for post in self._posts:
                post.keep_device()
            time.sleep(_TICK_S)

    def _announce_until(self, done: threading.Event) -> None:
        while not done.wait(_ANNOUNCE_EVERY_S):
            self._announce()

    def _announce(self) -> None:
        try:
            for post in self._posts:
                self._coordination.presence.announce(post.announcement(self._guard, self._state))
        except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away for a while
            log.warning("announce_failed", error=str(error))

    def _withdraw(self) -> None:
        try:
            for post in self._posts:
                self._coordination.presence.withdraw(post.worker_id)
        except Exception as error:  # noqa: BLE001 - on the way out: the announcement expires by itself
            log.warning("withdraw_failed", error=str(error))


def run_worker(
    settings: Settings,
    coordination: CoordinationStore,
    *,
    environment: dict[str, str],
    devices: Sequence[str],
    spec: DeviceSpec,
) -> None:
    """Supervise one post per entry of `devices` until stopped.

    Args:
        settings: drain time, threads and the rest.
        coordination: where the worker announces itself.
        environment: tells the consumers their servers.
        devices: device groups, from `choose_devices`.
        spec: what every device process is told; its paths and device are filled in here.

    Raises:
        DeviceError: see `Supervisor.run`.
    """
    with _runtime_folder() as folder:
        posts = []
        for index, device in enumerate(devices):
            worker_id = f"{socket.gethostname()}-{os.getpid()}-{index}"
            own = spec.model_copy(
                update={
                    "socket_path": folder / f"{index}.sock",
                    "heartbeat_path": folder / f"{index}.pulse",
                    "device": "cpu" if device == "cpu" else "cuda:0",
                }
            )
            consumers = [
                ConsumerSpec(
                    spec.guard,
                    spec.location,
                    lane,
                    str(own.socket_path),
                    worker_id,
                    threads,
                    weights=spec.server is None,
                    devices=spec.devices_per_worker,
                )
                for lane, threads in ((Lane.LIVE, settings.live_threads), (Lane.BULK, settings.bulk_threads))
            ]
            visible = "" if device == "cpu" else device
            posts.append(
                _Post(own, consumers, worker_id=worker_id, visible=visible, env=environment, coordination=coordination)
            )
        Supervisor(posts, coordination, guard=spec.guard, drain_s=settings.drain_s).run()


@contextmanager
def _runtime_folder() -> Iterator[Path]:
    """A private folder for sockets; short, because a Unix socket's path is limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="libra-w"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def choose_devices(
    wanted: str, *, per_worker: int = 1, visible: str | None = None, list_cuda: Callable[[], list[str]] | None = None
) -> list[str]:
    """Device groups from `all`, `cpu` or a list such as `0,1`; each group is "cpu" or CUDA indexes ("0,1").

    Args:
        wanted: what the user asked for; `all` means every CUDA device, or the CPU where there is none.
        per_worker: CUDA devices that one model is spread over.
        visible: CUDA_VISIBLE_DEVICES, which limits `all`.
        list_cuda: how to find the CUDA devices; for tests.

    Raises:
        UsageError: not a device list, or not divisible by `per_worker`.
    """
    if wanted == "cpu":
        return ["cpu"]
    if wanted == "all":
        found = visible.split(",") if visible else (list_cuda or _cuda_devices)()
        if not found:
            return ["cpu"]
    else:
        found = [part.strip() for part in wanted.split(",")]
    if not all(part.isdecimal() or part.startswith(("GPU-", "MIG-")) for part in found):
        raise UsageError(f"--devices {wanted!r}: expected all, cpu, or indexes such as 0,1")
    if len(found) % per_worker:
        raise UsageError(f"{len(found)} devices cannot be shared out {per_worker} to a worker")
    return [",".join(found[start : start + per_worker]) for start in range(0, len(found), per_worker)]


def _cuda_devices() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []
