"""One device process as the supervisor holds it: start, wait until it listens, see a stuck batch, kill."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from typing import IO, Any, Final

from infra.errors import DeviceError, GuardError
from infra.process import python_module
from infra.settings import child_environment
from infra.supervise import spawn
from worker.device.heartbeat import Pulse, read_pulse
from worker.device.spec import DeviceSpec

_SPINS: Final = "20000"
"""Looks of a matrix product's thread for the next one before it sleeps. Not at all cost a CPU engine a tenth
of its rate; the default, fifteen times as often, takes more from the other processes (docs/decisions/0016)."""


class DeviceProcess:
    """A running `python -m worker.device`. Not restarted: a new one takes its place.

    Create it from a thread that lives as long as the process should: the kernel kills the child when
    the *thread* that started it ends (PR_SET_PDEATHSIG).
    """

    def __init__(self, spec: DeviceSpec, *, visible_devices: str | None = None) -> None:
        """Start it. `visible_devices` becomes CUDA_VISIBLE_DEVICES; None leaves it as it is."""
        changes = {"GOMP_SPINCOUNT": _SPINS}
        if visible_devices is not None:
            changes["CUDA_VISIBLE_DEVICES"] = visible_devices
        self._spec = spec
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
        try:
            line = _first_line(stdout, timeout_s)
        finally:
            stdout.close()
            self.process.stdout = None
        if line is None:
            self.kill()
            raise DeviceError(f"the device process of {self._spec.guard} was not ready after {timeout_s:g} s")
        report: dict[str, Any] = json.loads(line or "{}")
        if report.get("ready"):
            return
        code = self.process.wait()
        if "error" in report:
            raise GuardError(report["error"])
        raise DeviceError(f"the device process of {self._spec.guard} ended with code {code} while starting")

    def overdue(self, now: float) -> bool:
        """True if its batch runs past the deadline; `now` in CLOCK_MONOTONIC seconds."""
        return 0 < self.stats().deadline < now

    def stats(self) -> Pulse:
        """Its work since it started."""
        return read_pulse(self._spec.heartbeat_path)

    def kill(self) -> None:
        """End it at once (SIGKILL) and reap it."""
        self.process.kill()
        self.process.wait()


def _first_line(stream: IO[bytes], timeout_s: float) -> bytes | None:
    """The first line, what came before the end if there was none, or None after the timeout."""
    deadline = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            # Not the buffered reader: it would wait for more than there is.
            piece = os.read(stream.fileno(), 4096)
            if not piece:
                return line
            line += piece
    return line
