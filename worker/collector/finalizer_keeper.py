"""Keeps a finalizer process running beside the collector: started again where it ends, killed where it is stuck."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Final

from infra.log import get_logger
from infra.process import python_module
from infra.supervise import Restart, SupervisedProcess, Supervisor, spawn

_TICK_S: Final = 0.2
_STARTS_WITHIN_S: Final = 60.0
_RESTART: Final = Restart(first_pause_s=1.0, longest_pause_s=30.0)
_LAST_GRACE_S: Final = 1.0

log = get_logger(__name__)


class FinalizerKeeper:
    """Owns the process. `run` is for a thread that lives as long as the process should."""

    def __init__(self, environment: Mapping[str, str], *, silent_s: float, grace_s: float) -> None:
        """`silent_s`: without a sign of life for so long it is killed; `grace_s`: it may take so long to end."""
        self._environment = environment
        self._silent_s = silent_s
        self._grace_s = grace_s
        self._kill_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Keep it running until stopped, then end it."""
        child = SupervisedProcess("finalizer", self._start, _RESTART)
        supervisor = Supervisor([child], on_exit=lambda _, code: log.warning("finalizer_ended", code=code))
        while not stop.wait(_TICK_S):
            supervisor.poll()
            self._watch(child)
        supervisor.stop(self._grace_s, last_grace_s=_LAST_GRACE_S)

    def _start(self) -> subprocess.Popen[bytes]:
        process = spawn(python_module("worker.collector.finalizer"), self._environment, stdout=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        os.set_blocking(process.stdout.fileno(), False)
        self._kill_at = time.monotonic() + _STARTS_WITHIN_S
        return process

    def _watch(self, child: SupervisedProcess) -> None:
        if child.process is None or child.process.stdout is None or not child.running:
            return
        if child.process.stdout.read():
            self._kill_at = time.monotonic() + self._silent_s
        elif time.monotonic() > self._kill_at:
            log.error("finalizer_stuck", pid=child.process.pid)
            child.process.kill()
