"""`libra fleet up`: worker on all devices, collector, gateway and sender of webhooks, until Ctrl-C."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.live import Live

from infra.errors import UsageError
from infra.fleet import look
from infra.ledger.keys import list_keys
from infra.process import FileLock
from infra.servers.services import Services, services
from infra.settings import load_settings
from libra_fleet.cli.fleet import require_free
from libra_fleet.cli.options import GuardChoice, guard_option
from libra_fleet.cli.show import err, say
from libra_fleet.machine.fleet import FleetProcess, MachineFleet, collector_process, fleet_process, worker_process
from libra_fleet.machine.view import RunPace, Warnings, plain_line, screen

_LOOK_EVERY_S: Final = 1.0
_LINE_EVERY_S: Final = 10.0
_NOTES: Final = 4
_HOST: Final = "127.0.0.1"


@click.command()
@guard_option
@click.option("--devices", default="all", show_default=True, help="Devices of the worker: all, cpu, 0,1.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8000, show_default=True, help="Port of the gateway.")
@click.option("--no-gateway", is_flag=True, help="No gateway and no sender of webhooks.")
def up(*, guard: GuardChoice, devices: str, port: int, no_gateway: bool) -> None:
    """Run a whole fleet on this machine and show it until Ctrl-C.

    Ctrl-C drains and ends it; twice ends it at once.
    """
    settings = load_settings()
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with_gateway = not no_gateway and _installed("fastapi", "uvicorn")
    address = f"http://{_HOST}:{port}" if with_gateway else None
    with _alone(settings.state_dir, guard.name, address), services(settings) as found:
        if address:
            require_free(_HOST, port)
        if not no_gateway and not with_gateway:
            say("no gateway: pip install 'libra-fleet[gateway]' brings it")
        # In the order of the screen; work stops where it comes in, then where it is done, then is settled.
        parts = [
            collector_process(found),
            worker_process(found, guard.name, "--devices", devices, checkpoint=guard.checkpoint),
        ]
        if with_gateway:
            named = f"{guard.name}={guard.checkpoint}" if guard.checkpoint else guard.name
            command = ["gateway", "--host", _HOST, "--port", str(port), "--guard", named, "--no-local"]
            parts.append(fleet_process(found, "gateway", command, stage=0))
            if _installed("httpx2"):
                parts.append(fleet_process(found, "webhooks", ["webhooks", "send"], stage=2))
        _Up(found, parts, guard.name, address).run()


class _Up:
    """The loop of `libra fleet up`: one thread starts, watches, draws and ends everything."""

    def __init__(self, found: Services, parts: list[FleetProcess], guard: str, address: str | None) -> None:
        servers = f"embedded servers in {found.settings.state_dir}" if found.embedded else "configured servers"
        self._title = f"libra fleet up, guard {guard} · {servers}"
        self._facts = [f"gateway {address}", f"console {address}/console"] if address else []
        self._found = found
        self._parts = parts
        self._address = address
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._fleet = MachineFleet(found, parts, self._note)
        self._warnings = Warnings({part.kind: part.process.log for part in parts if part.process.log})
        self._pace = RunPace()
        self._signals = 0
        self._wake = threading.Event()
        self._live = Live(console=err, auto_refresh=False, screen=True) if err.is_terminal else None

    def run(self) -> None:
        """Until a signal comes."""

        def on_signal(*_: object) -> None:
            self._signals += 1
            self._wake.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        if self._address and not list_keys(self._found.engine):
            self._facts.append("no API key yet: libra keys create --tenant NAME")
        for fact in (self._title, *self._facts):
            self._note(fact)
        try:
            with self._live or contextlib.nullcontext():
                self._watch()
        finally:
            self._live = None  # the end is reported in plain lines, which stay
            self._fleet.stop(lambda: self._signals > 1)
        say("everything has ended")

    def _watch(self) -> None:
        said_at = -_LINE_EVERY_S
        was_ready = False
        while not self._signals:
            seen = look(self._found)
            fleet = None if seen.away else seen  # while a server is away, everybody waits for it
            if fleet is not None:
                self._fleet.poll(fleet.announced)
            for warning in self._warnings.look():
                if self._live is None:
                    say(f"! {warning}")
            left_s = self._pace.look(time.monotonic(), fleet) if fleet else {}
            if self._fleet.all_ready and not was_ready:
                self._note("everything is ready")
            was_ready = self._fleet.all_ready
            if self._live is not None:
                shown = screen(
                    self._title,
                    self._parts,
                    fleet,
                    left_s=left_s,
                    notes=self._notes,
                    warnings=self._warnings.last,
                    facts=self._facts,
                )
                self._live.update(shown, refresh=True)
            elif time.monotonic() - said_at >= _LINE_EVERY_S:
                said_at = time.monotonic()
                say(plain_line(self._parts, fleet, left_s))
            self._wake.wait(_LOOK_EVERY_S)

    def _note(self, what: str) -> None:
        self._notes.append(f"{datetime.now(UTC):%H:%M:%S} {what}")
        if self._live is None:
            say(what)


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


@contextmanager
def _alone(state_dir: Path, guard: str, address: str | None) -> Iterator[None]:
    """Hold this state folder's place for one `libra fleet up`."""
    place = state_dir / "up.lock"
    with FileLock(place) as lock:
        if not lock.try_exclusive():
            advice = "libra fleet status --watch shows it"
            try:
                facts = json.loads(place.read_text())
            except ValueError:
                raise UsageError(f"a fleet is up already; {advice}") from None
            gateway = f", gateway {facts['gateway']}" if facts["gateway"] else ""
            raise UsageError(
                f"a fleet is up already: process {facts['pid']} since {facts['since']} UTC, guard "
                f"{facts['guard']}{gateway}. {advice}; kill {facts['pid']} drains and ends it"
            )
        facts = {"pid": os.getpid(), "guard": guard, "gateway": address, "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"}
        os.ftruncate(lock.fileno(), 0)
        os.pwrite(lock.fileno(), json.dumps(facts).encode(), 0)
        yield
