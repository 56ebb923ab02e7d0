"""Real fleet processes for tests: started on the test's own servers, killed and stopped by pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.process import wait_until
from infra.servers.services import Services
from schemas.fleet import READY, Announcement
from schemas.messages import Lane
from tests.support.processes import stop

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0


class Fleet:
    """Starts `libra …` commands on one pair of servers."""

    def __init__(self, services: Services, folder: Path, **environment: str) -> None:
        self._services = services
        self._folder = folder
        settings = services.settings
        self._environment = {
            **services.environment(),
            "PYTHONPATH": str(ROOT),
            "LIBRA_STATE_DIR": str(folder / "state"),
            "LIBRA_RECONCILE_EVERY_S": str(settings.reconcile_every_s),
            "LIBRA_BULK_LEASE_S": str(settings.bulk_lease_s),
            "LIBRA_LIVE_LEASE_S": str(settings.live_lease_s),
            "LIBRA_DRAIN_S": str(settings.drain_s),
            **environment,
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own; its output goes to a log in the test's folder."""
        log = self._folder / f"{arguments[0]}-{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "libra_fleet.cli", *arguments],
                env={**self._environment, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def start_worker(self, *options: str) -> subprocess.Popen[bytes]:
        """A worker of the fake guard, ready to take chunks."""
        process = self.start("worker", "--guard", "fake", "--devices", "cpu", *options)
        self.wait(lambda: self.is_ready(process))
        return process

    def start_collector(self) -> subprocess.Popen[bytes]:
        """A collector, ready to settle."""
        process = self.start("collector")
        self.wait(lambda: self.is_ready(process))
        return process

    def announced(self) -> list[Announcement]:
        """Every process that has announced itself."""
        return self._services.coordination.presence.announced()

    def is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether this process has announced itself as ready."""
        return any(one.pid == process.pid and one.state == READY for one in self.announced())

    def logs(self) -> str:
        """Everything the processes said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.log")))

    def wait(self, condition: Callable[[], bool], *, timeout_s: float = WAIT_S) -> None:
        """Wait for a condition; on a time-out the logs are in the failure."""
        if not wait_until(condition, timeout_s=timeout_s):
            raise AssertionError(f"not within {timeout_s:g} s; logs:\n{self.logs()[-6000:]}")

    def stop_all(self) -> None:
        """Stop what still runs."""
        for process in self._started:
            stop(process, grace_s=15)


@contextmanager
def fleet_on(services: Services, folder: Path, **environment: str) -> Iterator[Fleet]:
    """A fleet that is gone when the context ends."""
    fleet = Fleet(services, folder, **environment)
    services.engine  # noqa: B018 - migrated before a process asks
    try:
        yield fleet
    finally:
        fleet.stop_all()


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The live descendants of a process."""
    return psutil.Process(process.pid).children(recursive=True)


def consumer_of(process: subprocess.Popen[bytes], lane: Lane) -> psutil.Process:
    """A worker's consumer of one lane."""
    return _child(process, lambda line: "worker.consumer.app" in line and f'"{lane.value}"' in line)


def device_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """A worker's device process."""
    return _child(process, lambda line: "worker.device" in line and "worker.consumer.app" not in line)


def _child(process: subprocess.Popen[bytes], matches: Callable[[str], bool]) -> psutil.Process:
    (found,) = [child for child in children(process) if matches(" ".join(child.cmdline()))]
    return found


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """kill -9 a worker and everything below it, the supervisor first."""
    victims = [psutil.Process(process.pid), *children(process)]
    for victim in victims:
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it died with its parent, as it should
    process.wait()
