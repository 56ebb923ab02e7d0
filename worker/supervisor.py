"""`libra fleet worker`: per device one device process and two consumers, kept alive, drained on SIGTERM.

Consumers start only once the model is loaded, so that a worker which cannot load takes no work. A device that fails
rests for a while and is tried again, while the others work; the worker ends when none is left.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

from infra.broker.app import queue_of
from infra.coordination.store import CoordinationStore
from infra.errors import DeviceError, DeviceProtocolError, GuardError, LibraError
from infra.log import get_logger
from infra.process import python_module
from infra.settings import Settings
from infra.supervise import Restart, SupervisedProcess, Supervisor, spawn
from schemas.fleet import QUARANTINED, READY, Announcement
from schemas.messages import Lane
from worker.consumer.app import ConsumerSpec, GuardFacts, forget_facts, read_facts
from worker.consumer.deliveries import holder_of
from worker.device.heartbeat import Pace, Pulse, Watch, read_pulse
from worker.device.inventory import Examining
from worker.device.process import LOAD_SILENCE_S, LOAD_TIMEOUT_S, DeviceProcess
from worker.device.spec import DeviceSpec

_TICK_S: Final = 0.1
_ANNOUNCE_EVERY_S: Final = 5.0
_MAX_DEATHS: Final = 10
_APART_FROM_DEATHS: Final = 2
"""Consumers that died in a row: what they read may have killed them."""
_RESTART: Final = Restart(max_deaths=_MAX_DEATHS)
_DEVICE_RESTART: Final = Restart(max_deaths=_MAX_DEATHS, from_ready=True)
_DEVICE_GRACE_S: Final = 10.0
_CHILD_GRACE_S: Final = 1.0
_GIVE_BACK_S: Final = 5.0
_FIRST_REST_S: Final = 30.0
_LONGEST_REST_S: Final = 600.0
"""A failed device is tried again after a pause that doubles with each failure in a row."""
_SOUND_AFTER_S: Final = 600.0
"""A device that worked for so long has left its earlier failures behind."""
_LOADING: Final = "loading"
_DRAINING: Final = "draining"

log = get_logger(__name__)


class _Device:
    """One device: its device process and its two consumers. `state` is what it announces, `trouble` why it failed."""

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
        examine: Callable[[], Examining] | None = None,
    ) -> None:
        """`examine` begins to examine the device, before a process loads a model there; None: it needs none."""
        self.worker_id = worker_id
        self.state = _LOADING
        self.trouble: str | None = None
        self.failure: LibraError | None = None
        """What ended its last try; None while it is loading or ready."""
        self._env = env
        self._silence_s = silence_s
        self._watches: dict[str, Watch] = {}
        self._coordination = coordination
        self._spec = spec
        self._visible = visible
        self._process: DeviceProcess | None = None
        self._was_ready = False
        self._ready_at = self._try_at = 0.0
        self._failures = 0
        self._facts: GuardFacts | None = None
        """What its consumers know. They outlive a device process whose successor holds the same model."""
        self._pace = Pace()
        self._examine = examine
        self._examining: Examining | None = None
        self._consumer_specs = {consumer.lane.value: consumer for consumer in consumers}
        self._start_over()

    def _start_over(self) -> None:
        """Forget the processes of an earlier try: a new one begins."""
        self.state, self.failure, self._was_ready, self._facts = _LOADING, None, False, None
        self._examining = self._examine() if self._examine else None
        self._device = Supervisor(
            [SupervisedProcess("device process", self._start_device, _DEVICE_RESTART)], on_exit=self._on_device_exit
        )
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
        self._watches[lane] = Watch(silence_s=self._silence_s, load_silence_s=LOAD_SILENCE_S, load_s=LOAD_TIMEOUT_S)
        return spawn(python_module("worker.consumer.app", spec.to_argument()), self._env)

    def poll(self) -> None:
        """Look once at all of it; what fails rests, and is tried again later."""
        try:
            if self.state != QUARANTINED:
                self._poll_device()
                if self._was_ready:
                    self._poll_consumers()
            elif time.monotonic() >= self._try_at:
                log.info("device_tried_again", worker=self.worker_id, device=self._visible)
                self._start_over()
        except (DeviceError, GuardError) as error:
            self._quarantine(error)

    def poll_while_draining(self) -> None:
        """Keep the device process alive for what its consumers have in hand."""
        if self.state != QUARANTINED:
            try:
                self._poll_device()
            except (DeviceError, GuardError) as error:
                self._quarantine(error)

    def _poll_device(self) -> None:
        """Start the device process; kill one that is stuck, and replace one that died.

        Raises:
            DeviceError: the device is unusable, or its process died too often.
            GuardError: it never was ready, and cannot load.
        """
        if self._examining is not None:
            if (examined := self._examining.poll()) is None:
                return
            self._examining = None
            if examined.unusable:
                raise DeviceError(f"device {self._visible}: {examined.unusable}")
        if self._process is not None:
            if how := self._process.hangs(time.monotonic()):
                log.error("device_process_hangs", worker=self.worker_id, error=how)
                self._process.kill()
            elif self.state != READY:
                self._look_if_ready(self._process)
        self._device.poll()

    def _look_if_ready(self, process: DeviceProcess) -> None:
        try:
            is_ready = process.poll_ready()
        except (DeviceError, GuardError) as error:
            self.trouble = str(error)
            if not self._was_ready:
                raise
            # It did load before: its end is counted like any other.
            log.error("device_process_cannot_load", worker=self.worker_id, error=self.trouble)
            return
        if is_ready:
            self.state, self.trouble, self._was_ready = READY, None, True
            self._ready_at = time.monotonic()
            self._device.processes[0].note_ready()
            log.info("device_ready", worker=self.worker_id, device=self._visible or self._spec.device)

    def _quarantine(self, error: LibraError) -> None:
        """End its processes, and rest; the consumers' chunks go back to their queues."""
        worked_s = time.monotonic() - self._ready_at if self._was_ready else 0.0
        self._failures = 0 if worked_s > _SOUND_AFTER_S else self._failures
        rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0**self._failures)
        self._failures += 1
        self.state, self.failure, self.trouble = QUARANTINED, error, str(error)
        self._try_at = time.monotonic() + rest_s
        log.error("device_quarantined", worker=self.worker_id, device=self._visible, error=str(error), rest_s=rest_s)
        if self._process is not None:
            self._process.kill()
            self._process = None
        self.close()

    def _poll_consumers(self) -> None:
        """Start the consumers; kill those that are stuck, and replace those that died (DeviceError: too often)."""
        for consumer in self.consumers.processes:
            watch = self._watches.get(consumer.name)
            pulse = read_pulse(self._consumer_specs[consumer.name].heartbeat_path)
            if watch and consumer.process and consumer.running and (how := watch.hangs(time.monotonic(), pulse)):
                log.error("consumer_hangs", worker=self.worker_id, lane=consumer.name, error=how)
                consumer.process.kill()
        self.consumers.poll()

    def _on_device_exit(self, device: SupervisedProcess, code: int) -> None:
        self.state = _LOADING
        log.error("device_process_died", worker=self.worker_id, exit_code=code)
        if device.given_up:
            why = f": {self.trouble}" if self.trouble else ""
            raise DeviceError(f"the device process of {self.worker_id} died {_MAX_DEATHS} times in a row{why}")

    def _on_consumer_exit(self, consumer: SupervisedProcess, code: int) -> None:
        self._facts = None  # its successor may know others
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

    def announcement(self, guard: str, *, draining: bool) -> Announcement:
        """The device as it is now, with what it has done since it started and over the last minute."""
        pulse = self._process.stats() if self._process else Pulse()
        facts = self._facts = read_facts(self._spec.socket_path) or self._facts
        return Announcement(
            id=self.worker_id,
            kind="worker",
            state=_DRAINING if draining else self.state,
            trouble=self.trouble,
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
    _draining: bool = False
    _loaded: bool = False
    _states: list[str] = field(default_factory=list)
    _news: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Load, work, and on SIGTERM or SIGINT drain; a second signal ends at once.

        Raises:
            DeviceError, GuardError: no device is left; it is the first one's failure.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        done = threading.Event()

        def announce_until_done() -> None:
            while not done.is_set():
                self._news.wait(_ANNOUNCE_EVERY_S)
                self._news.clear()
                if not done.is_set():
                    self._announce()

        try:
            threading.Thread(target=announce_until_done, daemon=True).start()
            while not self._signals:
                for device in self.devices:
                    device.poll()
                self._note_states()
                time.sleep(_TICK_S)
            self._drain()
        finally:
            done.set()
            self._news.set()
            for device in self.devices:
                device.close()
            self._withdraw()

    def _on_signal(self, *_: object) -> None:
        self._signals += 1

    def _note_states(self) -> None:
        """Announce a change at once; end where no device is left."""
        states = [device.state for device in self.devices]
        if states == self._states:
            return
        if all(state == QUARANTINED for state in states):
            raise next(device.failure for device in self.devices if device.failure is not None)
        if _LOADING not in states and not self._loaded:
            self._loaded = True
            resting = states.count(QUARANTINED)
            log.info("worker_ready", guard=self.guard, devices=states.count(READY), quarantined=resting)
        self._states = states
        self._news.set()

    def _drain(self) -> None:
        self._draining = True
        consumers = [consumer for device in self.devices for consumer in device.consumers.processes]
        if not any(consumer.running for consumer in consumers):
            log.info("stopped_while_loading")
            return
        self._news.set()
        log.info("worker_draining", grace_s=self.drain_s)
        for consumer in consumers:
            consumer.ask_to_end()
        deadline = time.monotonic() + self.drain_s
        while any(consumer.running for consumer in consumers):
            if self._signals > 1 or time.monotonic() > deadline:
                log.warning("drain_cut_short")
                return
            for device in self.devices:
                device.poll_while_draining()
            time.sleep(_TICK_S)

    def _announce(self) -> None:
        try:
            for device in self.devices:
                self.coordination.presence.announce(device.announcement(self.guard, draining=self._draining))
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
        DeviceError: no device is left: each is unusable, or something of it died too often in a row.
        GuardError: none can load the guard.
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
                    weights=spec.engine == "transformers",
                    devices=spec.devices_per_worker,
                    family=spec.family,
                )
                for lane, threads in ((Lane.LIVE, settings.live_threads), (Lane.BULK, settings.bulk_threads))
            ]
            visible = "" if device == "cpu" else device
            examined = device != "cpu" and spec.engine == "transformers"
            supervised.append(
                _Device(
                    own,
                    consumers,
                    worker_id=worker_id,
                    visible=visible,
                    env=environment,
                    coordination=coordination,
                    silence_s=settings.silence_s,
                    examine=partial(Examining, device) if examined else None,
                )
            )
        _Worker(supervised, coordination, spec.guard, settings.drain_s).run()
