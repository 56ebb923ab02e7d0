"""`libra fleet worker`: per device one device process and two consumers, kept alive, drained on SIGTERM.

Consumers start only once the model is loaded, so that a worker which cannot load takes no work.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.broker.app import queue_of
from infra.coordination.store import CoordinationStore
from infra.errors import DeviceError, DeviceProtocolError, GuardError, UsageError
from infra.log import get_logger
from infra.process import python_module
from infra.settings import Settings, child_environment
from infra.supervise import Restart, SupervisedProcess, Supervisor, spawn
from schemas.fleet import Announcement
from schemas.messages import Lane
from worker.consumer.app import ConsumerSpec, forget_facts, read_facts
from worker.consumer.deliveries import holder_of
from worker.device.heartbeat import Pace, Pulse, Watch, read_pulse
from worker.device.spec import DeviceSpec

_TICK_S: Final = 0.1
_ANNOUNCE_EVERY_S: Final = 5.0
_LOAD_TIMEOUT_S: Final = 1800.0
_LOAD_SILENCE_S: Final = 60.0
_LOOK_S: Final = 0.5
_MAX_DEATHS: Final = 10
_APART_FROM_DEATHS: Final = 2
"""Consumers that died in a row: what they read may have killed them."""
_RESTART: Final = Restart(max_deaths=_MAX_DEATHS)
_DEVICE_GRACE_S: Final = 10.0
_CHILD_GRACE_S: Final = 1.0
_GIVE_BACK_S: Final = 5.0
_SPINS: Final = "20000"
"""Looks of a matrix product's thread for the next one before it sleeps. Not at all cost a CPU engine a tenth
of its rate; the default, fifteen times as often, takes more from the other processes (docs/decisions/0016)."""

log = get_logger(__name__)


class _HangsError(DeviceError):
    """A device process hung while it loaded, and was killed."""


class _StopLoadingError(Exception):
    """A signal came while the models were loading."""


class DeviceProcess:
    """A running `python -m worker.device`. Not restarted: a new one takes its place.

    Create it from a thread that lives as long as the process should: the kernel kills the child when
    the *thread* that started it ends (PR_SET_PDEATHSIG).
    """

    def __init__(self, spec: DeviceSpec, *, visible_devices: str | None = None, silence_s: float = 10.0) -> None:
        """Start it. `visible_devices` becomes CUDA_VISIBLE_DEVICES; None leaves it as it is.

        `silence_s`: how long it may give no sign of life once it is ready.
        """
        changes = {"GOMP_SPINCOUNT": _SPINS}
        if visible_devices is not None:
            changes["CUDA_VISIBLE_DEVICES"] = visible_devices
        self._spec = spec
        self._watch = Watch(silence_s=silence_s, load_silence_s=_LOAD_SILENCE_S, load_s=_LOAD_TIMEOUT_S)
        spec.heartbeat_path.unlink(missing_ok=True)
        command = python_module("worker.device", spec.model_dump_json())
        self.process = spawn(command, child_environment(**changes), stdout=subprocess.PIPE)

    def wait_ready(self, timeout_s: float) -> None:
        """Return when it listens.

        Raises:
            GuardError: it could not load; the message says why.
            DeviceError: it died, or did not listen in time and was killed.
        """
        stdout = self.process.stdout
        if stdout is None:
            return
        deadline = time.monotonic() + timeout_s
        line = b""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(stdout, selectors.EVENT_READ)
                while not line.endswith(b"\n"):
                    if not selector.select(min(_LOOK_S, max(0.0, deadline - time.monotonic()))):
                        self._kill_if_it_hangs()
                        if time.monotonic() < deadline:
                            continue
                        self.kill()
                        raise DeviceError(
                            f"the device process of {self._spec.guard} was not ready after {timeout_s:g} s"
                        )
                    # Not the buffered reader: it would wait for more than there is.
                    piece = os.read(stdout.fileno(), 4096)
                    if not piece:
                        break
                    line += piece
        finally:
            stdout.close()
            self.process.stdout = None
        report: dict[str, Any] = json.loads(line or "{}")
        if report.get("ready"):
            return
        code = self.process.wait()
        if "error" in report:
            raise GuardError(report["error"])
        raise DeviceError(f"the device process of {self._spec.guard} ended with code {code} while starting")

    def hangs(self, now: float) -> str | None:
        """The way in which it hangs, or None; `now` in CLOCK_MONOTONIC seconds. Ask often: see `Watch`."""
        return self._watch.hangs(now, self.stats())

    def _kill_if_it_hangs(self) -> None:
        if how := self.hangs(time.monotonic()):
            self.kill()
            raise _HangsError(f"the device process of {self._spec.guard} was killed while it loaded: {how}")

    def stats(self) -> Pulse:
        """Its work since it started."""
        return read_pulse(self._spec.heartbeat_path)

    def kill(self) -> None:
        """End it at once (SIGKILL) and reap it."""
        self.process.kill()
        self.process.wait()


class _Device:
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
        silence_s: float,
    ) -> None:
        self.worker_id = worker_id
        self._env = env
        self._silence_s = silence_s
        self._watches: dict[str, Watch] = {}
        self._coordination = coordination
        self._spec = spec
        self._visible = visible
        self._process: DeviceProcess | None = None
        self._pace = Pace()
        self._device = Supervisor(
            [SupervisedProcess("device process", self._start_device, _RESTART)], on_exit=self._on_device_exit
        )
        self._consumer_specs = {consumer.lane.value: consumer for consumer in consumers}
        self.consumers = Supervisor(
            [SupervisedProcess(lane, partial(self._start_consumer, lane), _RESTART) for lane in self._consumer_specs],
            on_exit=self._on_consumer_exit,
        )

    def _start_device(self) -> subprocess.Popen[bytes]:
        forget_facts(self._spec.socket_path)
        self._process = DeviceProcess(self._spec, visible_devices=self._visible, silence_s=self._silence_s)
        return self._process.process

    def _start_consumer(self, lane: str) -> subprocess.Popen[bytes]:
        """Start a consumer; where some died one after the other, the next one reads no item in its own process."""
        spec = self._consumer_specs[lane]
        deaths = next(consumer.deaths for consumer in self.consumers.processes if consumer.name == lane)
        spec = replace(spec, apart=deaths >= _APART_FROM_DEATHS)
        spec.heartbeat_path.unlink(missing_ok=True)
        self._watches[lane] = Watch(silence_s=self._silence_s, load_silence_s=_LOAD_SILENCE_S, load_s=_LOAD_TIMEOUT_S)
        return spawn(python_module("worker.consumer.app", spec.to_argument()), self._env)

    def wait_ready(self) -> None:
        """Wait until the model is loaded; one that hangs meanwhile is replaced. See `DeviceProcess.wait_ready`."""
        while self._process is not None:
            try:
                self._process.wait_ready(_LOAD_TIMEOUT_S)
                break
            except _HangsError as error:
                log.error("device_process_hangs", worker=self.worker_id, error=str(error))
                self._device.poll()

    def poll_device(self) -> None:
        """Start the device process; kill one that is stuck, and replace one that died (DeviceError: too often)."""
        if self._process is not None and (how := self._process.hangs(time.monotonic())):
            log.error("device_process_hangs", worker=self.worker_id, error=how)
            self._process.kill()
        self._device.poll()

    def poll_consumers(self) -> None:
        """Start the consumers; kill those that are stuck, and replace those that died (DeviceError: too often)."""
        for consumer in self.consumers.processes:
            watch = self._watches.get(consumer.name)
            pulse = read_pulse(self._consumer_specs[consumer.name].heartbeat_path)
            if watch and consumer.process and consumer.running and (how := watch.hangs(time.monotonic(), pulse)):
                log.error("consumer_hangs", worker=self.worker_id, lane=consumer.name, error=how)
                consumer.process.kill()
        self.consumers.poll()

    def _on_device_exit(self, device: SupervisedProcess, code: int) -> None:
        log.error("device_process_died", worker=self.worker_id, exit_code=code)
        if device.given_up:
            raise DeviceError(f"the device process of {self.worker_id} died {_MAX_DEATHS} times in a row")

    def _on_consumer_exit(self, consumer: SupervisedProcess, code: int) -> None:
        log.error("consumer_died", worker=self.worker_id, lane=consumer.name, exit_code=code)
        if consumer.given_up:
            raise DeviceError(f"the {consumer.name} consumer of {self.worker_id} died too often in a row")
        self._give_back(consumer)
        if code == DeviceProtocolError.exit_code and self._process is not None:
            self._process.kill()  # package or checkpoint were replaced under the older of the two; the next are alike

    def _give_back(self, consumer: SupervisedProcess) -> threading.Thread:
        """Put what a dead consumer held back on its queue, in a thread that the broker may hold up."""
        spec, pid = self._consumer_specs[consumer.name], consumer.process.pid if consumer.process else 0

        def give_back() -> None:
            try:
                given = self._coordination.give_back(queue_of(spec.guard, spec.lane), holder_of(self.worker_id, pid))
            except Exception as error:  # noqa: BLE001 - a thread's edge: where it fails, the chunks' lease runs out
                log.warning("give_back_failed", worker=self.worker_id, lane=consumer.name, error=str(error))
                return
            if given:
                log.info("chunks_given_back", worker=self.worker_id, lane=consumer.name, chunks=given)

        thread = threading.Thread(target=give_back, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """End what still lives, and give back what a consumer held that did not end by itself."""
        self.consumers.stop(_CHILD_GRACE_S)
        for consumer in self.consumers.processes:
            if consumer.process is not None and consumer.process.returncode != 0:
                self._give_back(consumer).join(_GIVE_BACK_S)
        self._device.stop(_DEVICE_GRACE_S)

    def announcement(self, guard: str, state: str) -> Announcement:
        """The device as it is now, with what it has done since it started and over the last minute."""
        pulse = self._process.stats() if self._process else Pulse()
        facts = read_facts(self._spec.socket_path)
        return Announcement(
            id=self.worker_id,
            kind="worker",
            state=state,
            pid=os.getpid(),
            version=version("libra-fleet"),
            guard=guard,
            device=self._visible or self._spec.device,
            kinds=facts and list(facts.kinds),
            fingerprints=facts and facts.fingerprints,
            batches=pulse.batches,
            items=pulse.items,
            rows=pulse.rows,
            tokens=pulse.tokens,
            padded_tokens=pulse.padded_tokens,
            busy_s=round(pulse.busy_s, 3),
            budget_tokens=pulse.budget_tokens or self._spec.max_batch_tokens,
            **self._pace.look(time.monotonic(), pulse),
        )


@dataclass
class _Worker:
    """Run the devices of one machine until asked to stop."""

    devices: Sequence[_Device]
    coordination: CoordinationStore
    guard: str
    drain_s: float
    _signals: int = 0
    _state: str = "loading"

    def run(self) -> None:
        """Load, work, and on SIGTERM or SIGINT drain; a second signal ends at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        done = threading.Event()

        def announce_until_done() -> None:
            while not done.wait(_ANNOUNCE_EVERY_S):
                self._announce()

        try:
            threading.Thread(target=announce_until_done, daemon=True).start()
            self._load()
            while not self._signals:
                for device in self.devices:
                    device.poll_device()
                    device.poll_consumers()
                time.sleep(_TICK_S)
            self._drain()
        except _StopLoadingError:
            log.info("stopped_while_loading")
        finally:
            done.set()
            for device in self.devices:
                device.close()
            self._withdraw()

    def _on_signal(self, *_: object) -> None:
        self._signals += 1
        if self._state == "loading":
            raise _StopLoadingError

    def _load(self) -> None:
        for device in self.devices:
            device.poll_device()
        for device in self.devices:
            device.wait_ready()
        self._state = "ready"
        for device in self.devices:
            device.poll_consumers()
        self._announce()
        log.info("worker_ready", guard=self.guard, devices=len(self.devices))

    def _drain(self) -> None:
        self._state = "draining"
        log.info("worker_draining", grace_s=self.drain_s)
        consumers = [consumer for device in self.devices for consumer in device.consumers.processes]
        for consumer in consumers:
            consumer.ask_to_end()
        deadline = time.monotonic() + self.drain_s
        while any(consumer.running for consumer in consumers):
            if self._signals > 1 or time.monotonic() > deadline:
                log.warning("drain_cut_short")
                return
            for device in self.devices:
                device.poll_device()
            time.sleep(_TICK_S)

    def _announce(self) -> None:
        try:
            for device in self.devices:
                self.coordination.presence.announce(device.announcement(self.guard, self._state))
        except Exception as error:  # noqa: BLE001 - a loop's edge: the broker may be away for a while
            log.warning("announce_failed", error=str(error))

    def _withdraw(self) -> None:
        try:
            for device in self.devices:
                self.coordination.presence.withdraw(device.worker_id)
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
    """Keep one device process and two consumers per entry of `devices` (see `choose_devices`) running until stopped.

    `environment` tells the consumers their servers; the paths and the device of `spec` are filled in here.

    Raises:
        DeviceError: a device process cannot load its model, or something died too often in a row.
    """
    # Short, because a Unix socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="libra-w", ignore_cleanup_errors=True) as folder:
        supervised = []
        for index, device in enumerate(devices):
            worker_id = f"{socket.gethostname()}-{os.getpid()}-{index}"
            own = spec.model_copy(
                update={
                    "socket_path": Path(folder, f"{index}.sock"),
                    "heartbeat_path": Path(folder, f"{index}.pulse"),
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
            supervised.append(
                _Device(
                    own,
                    consumers,
                    worker_id=worker_id,
                    visible=visible,
                    env=environment,
                    coordination=coordination,
                    silence_s=settings.silence_s,
                )
            )
        _Worker(supervised, coordination, spec.guard, settings.drain_s).run()


class Device(NamedTuple):
    """A CUDA device, or the processor with the machine's memory. A memory of 0 bytes is not known."""

    id: str
    name: str
    total_bytes: int
    free_bytes: int


def cuda_devices() -> list[Device]:
    """The devices that nvidia-smi lists; none where it is not installed, or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    devices = []
    for line in listed.stdout.splitlines() if listed.returncode == 0 else []:
        index, name, *memory = (part.strip() for part in line.split(","))
        # A device that shares the processor's memory says "[N/A]".
        total, free = (int(megabytes) << 20 if megabytes.isdecimal() else 0 for megabytes in memory)
        devices.append(Device(index, name, total, free))
    return devices


def choose_devices(
    wanted: str, *, per_worker: int = 1, visible: str | None = None, cuda: Sequence[Device] | None = None
) -> list[str]:
    """Device groups from `all`, `cpu` or a list such as `0,1`; each group is "cpu" or CUDA indexes ("0,1").

    `all` means every CUDA device that `visible` (CUDA_VISIBLE_DEVICES) leaves, or the CPU where there is none. One
    model is spread over `per_worker` of them. Without `cuda` nvidia-smi is asked, where that matters.

    Raises:
        UsageError: not a device list, or not divisible by `per_worker`.
    """
    if wanted == "cpu":
        return ["cpu"]
    if wanted == "all":
        listed = () if visible else cuda_devices() if cuda is None else cuda
        found = visible.split(",") if visible else [device.id for device in listed]
        if not found:
            return ["cpu"]
    else:
        found = [part.strip() for part in wanted.split(",")]
    if not all(part.isdecimal() or part.startswith(("GPU-", "MIG-")) for part in found):
        raise UsageError(f"--devices {wanted!r}: expected all, cpu, or indexes such as 0,1")
    if len(found) % per_worker:
        raise UsageError(f"{len(found)} devices cannot be shared out {per_worker} to a worker")
    return [",".join(found[start : start + per_worker]) for start in range(0, len(found), per_worker)]
