"""Processes that a test starts, and ends."""

from __future__ import annotations

import signal
import subprocess


def stop(process: subprocess.Popen[bytes], *, grace_s: float, signal_number: int = signal.SIGTERM) -> int:
    """Ask the process to end, wait `grace_s` seconds, then kill it; return its exit code."""
    if process.poll() is None:
        process.send_signal(signal_number)
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
