"""A running `python -m worker.device`, seen from the process that started it. Knows no engine and no consumer."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from infra.errors import DeviceError, GuardError
from infra.process import python_module
from infra.settings import child_environment
from infra.supervise import spawn
from worker.device.heartbeat import Pulse, Watch, read_pulse
from worker.device.spec import DeviceSpec

LOAD_TIMEOUT_S: Final = 1800.0
LOAD_SILENCE_S: Final = 60.0
_LOOK_S: Final = 0.5
_EXIT_S: Final = 10.0
"""A process that could not load ends by itself within this time, unless its driver holds it."""
_SPINS: Final = "20000"
"""Looks of a matrix product's thread for the next one before it sleeps. Not at all cost a CPU engine a tenth
of its rate; the default, fifteen times as often, takes more from the other processes (docs/decisions/0016)."""
_ON_CUDA: Final = {
    # Every batch has another shape: segments that grow waste less than blocks of fixed size.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # Eight device processes with as many threads as cores each would only wait for one another.
    "OMP_NUM_THREADS": "4",
}
"""Unless the operator says otherwise."""


class HangsError(DeviceError):
    """A device process hung while it loaded, and was killed."""


class DeviceProcess:
    """A running `python -m worker.device`. Not restarted: a new one takes its place.

    Create it from a thread that lives as long as the process should: the kernel kills the child when
    the *thread* that started it ends (PR_SET_PDEATHSIG).
    """

    def __init__(
        self,
        spec: DeviceSpec,
        *,
        visible_devices: str | None = None,
        silence_s: float = 10.0,
        log: Path | None = None,
    ) -> None:
        """Start it. `visible_devices` becomes CUDA_VISIBLE_DEVICES, in PCI order; None leaves it as it is.

        `silence_s`: how long it may give no sign of life once it is ready. `log`: where its log goes, if not to ours.
        """
        changes = {"GOMP_SPINCOUNT": _SPINS}
        if visible_devices is not None:
            changes |= {"CUDA_VISIBLE_DEVICES": visible_devices, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        self._spec = spec
        self._watch = Watch(silence_s=silence_s, load_silence_s=LOAD_SILENCE_S, load_s=LOAD_TIMEOUT_S)
        self._line = b""
        self._is_ready = False
        spec.heartbeat_path.unlink(missing_ok=True)
        command = python_module("worker.device", spec.model_dump_json())
        environment = child_environment(_ON_CUDA if visible_devices else None, **changes)
        self.process = spawn(command, environment, log=log, stdout=subprocess.PIPE)

    def poll_ready(self, wait_s: float = 0.0) -> bool:
        """True once it listens; waits up to `wait_s` seconds for a word of it.

        Raises:
            GuardError: it could not load; the message says why.
            DeviceError: it died.
        """
        stdout = self.process.stdout
        if stdout is None:
            return self._is_ready
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(wait_s):
                return False
        # Not the buffered reader: it would wait for more than there is.
        piece = os.read(stdout.fileno(), 4096)
        self._line += piece
        if piece and not self._line.endswith(b"\n"):
            return False
        self._stop_reading()
        report: dict[str, Any] = json.loads(self._line or "{}")
        self._is_ready = bool(report.get("ready"))
        if self._is_ready:
            return True
        try:
            code = self.process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.returncode
        if "error" in report:
            raise GuardError(report["error"])
        raise DeviceError(f"the device process of {self._spec.guard} ended with code {code} while starting")

    def wait_ready(self, timeout_s: float) -> None:
        """Return when it listens.

        Raises:
            GuardError: it could not load; the message says why.
            DeviceError: it died, or did not listen in time and was killed.
        """
        deadline = time.monotonic() + timeout_s
        while not self.poll_ready(min(_LOOK_S, max(0.0, deadline - time.monotonic()))):
            if how := self.hangs(time.monotonic()):
                self.kill()
                raise HangsError(f"the device process of {self._spec.guard} was killed while it loaded: {how}")
            if time.monotonic() >= deadline:
                self.kill()
                raise DeviceError(f"the device process of {self._spec.guard} was not ready after {timeout_s:g} s")

    def hangs(self, now: float) -> str | None:
        """The way in which it hangs, or None; `now` in CLOCK_MONOTONIC seconds. Ask often: see `Watch`."""
        return self._watch.hangs(now, self.stats())

    def stats(self) -> Pulse:
        """Its work since it started."""
        return read_pulse(self._spec.heartbeat_path)

    def kill(self) -> None:
        """End it at once (SIGKILL) and reap it; one that its driver holds is left behind."""
        self._stop_reading()
        self.process.kill()
        try:
            self.process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self.process.returncode = -9  # in the driver for ever: the next one takes its place

    def _stop_reading(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
            self.process.stdout = None
