"""The keeper: a small process that is the parent of the embedded Valkey and Postgres for as long as anyone uses them.

Started by `infra.servers.embedded` as `python -m infra.servers.keeper STATE_DIR LOCK_DESCRIPTOR`. It restarts a server
that dies, and stops both once no process holds a shared lock on users.lock, or on SIGTERM. If the keeper itself is
killed, the kernel stops the servers. It has no threads, so that its preexec_fn is safe.

Knows nothing about users, URLs, Redis commands or SQL beyond creating the database; imports nothing heavy, since
every start waits for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from infra.errors import LibraError, ServerError
from infra.process import tied_to_caller, wait_until
from infra.servers.filelock import FileLock
from infra.servers.places import POSTGRES_PORT, Binaries, Places, find_binaries, postgres_user
from infra.supervise import Restart, SupervisedProcess, Supervisor

DATABASE: Final = "libra"
"""Both the database and its owner."""

_POLL_S: Final = 0.1
_GRACE_S: Final = 30.0
_PREDECESSOR_S: Final = 30.0
_RESTART: Final = Restart(first_pause_s=0.2, steady_after_s=10, max_deaths=4)


class Program(Protocol):
    """One server: its preparation and its command."""

    name: str
    stop_signal: signal.Signals

    @property
    def lock_path(self) -> Path:
        """Beside its data. Every process of the server inherits the lock: once we get it, none is left."""

    def prepare(self, lock: FileLock) -> None:
        """Clear what a killed predecessor left behind, create the data. The caller holds the lock."""

    def start(self, lock: FileLock) -> subprocess.Popen[bytes]:
        """Start the server, which inherits the lock."""


class Valkey:
    """The broker: append-only, on a Unix socket only."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, places: Places, binaries: Binaries) -> None:
        self._places = places
        self._binary = binaries.valkey_server

    @property
    def lock_path(self) -> Path:
        """See Program."""
        return self._places.valkey_data / "lock"

    def prepare(self, lock: FileLock) -> None:
        """Nothing to do: Valkey replaces a stale socket, and a torn end of its file is cut off."""

    def start(self, lock: FileLock) -> subprocess.Popen[bytes]:
        """See Program."""
        options = {
            "port": "0",
            "unixsocket": str(self._places.valkey_socket),
            "unixsocketperm": "700",
            "protected-mode": "yes",
            "dir": str(self._places.valkey_data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [str(self._binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
        with self._places.log(self.name).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_server_environment(),
                pass_fds=[lock.fileno()],
                preexec_fn=tied_to_caller(self.stop_signal),  # noqa: PLW1509  no threads here
            )


class Postgres:
    """The ledger's database: durable, on a Unix socket in a private folder, which is its authentication."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": SIGTERM would wait until all clients have left

    def __init__(self, places: Places, binaries: Binaries) -> None:
        self._places = places
        self._binaries = binaries
        self._data = places.postgres_home / "data"

    @property
    def lock_path(self) -> Path:
        """See Program."""
        return self._places.postgres_home / "lock"

    def prepare(self, lock: FileLock) -> None:
        """Remove stale process ids, which may be another process's by now; make the data folder and database.

        Raises:
            ServerError: initdb failed; its log says why.
        """
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        for stale in self._places.postgres_sockets.glob(".s.PGSQL.*"):
            stale.unlink()
        if not self._data.exists():
            self._initialise(lock)

    def start(self, lock: FileLock) -> subprocess.Popen[bytes]:
        """See Program."""
        options = {
            "listen_addresses": "",
            "port": str(POSTGRES_PORT),
            "unix_socket_directories": str(self._places.postgres_sockets),
            "unix_socket_permissions": "0700",
            "shared_buffers": "128MB",
            "max_connections": "100",
            "wal_compression": "on",
            "fsync": "on",
            "synchronous_commit": "on",
            "log_checkpoints": "off",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return self._popen([str(self._binaries.postgres), "-D", str(self._data), *settings], lock, self.stop_signal)

    def _initialise(self, lock: FileLock) -> None:
        """Build the data folder under another name, so that a half-made one is never taken for whole."""
        fresh = self._data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        initdb = [str(self._binaries.initdb), "-D", str(fresh), "-U", DATABASE, "--auth=trust"]
        self._run([*initdb, "--encoding=UTF8", "--locale=C", "--no-instructions"], lock)
        alone = [str(self._binaries.postgres), "--single", "-D", str(fresh), "postgres"]
        self._run(alone, lock, statement=f"CREATE DATABASE {DATABASE}\n")
        fresh.rename(self._data)

    def _run(self, command: list[str], lock: FileLock, *, statement: str = "") -> None:
        process = self._popen(command, lock, signal.SIGKILL, stdin=subprocess.PIPE)
        process.communicate(statement.encode())
        if process.returncode != 0:
            raise ServerError(f"{Path(command[0]).name} failed with exit code {process.returncode}")

    def _popen(
        self, command: list[str], lock: FileLock, death_signal: int, *, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        user = postgres_user()
        with self._places.log(self.name).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_server_environment(),
                pass_fds=[lock.fileno()],
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                preexec_fn=tied_to_caller(death_signal),  # noqa: PLW1509  no threads here
            )


def keep(places: Places) -> None:
    """Run both servers until nobody uses them or SIGTERM comes.

    Raises:
        ServerError: a server cannot be started, or keeps dying.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    binaries = find_binaries()
    programs: list[Program] = [Postgres(places, binaries), Valkey(places, binaries)]
    servers = Supervisor(
        [
            SupervisedProcess(
                program.name,
                partial(_start, program),
                _RESTART,
                stage=stage,
                stop_signal=program.stop_signal,
            )
            for stage, program in enumerate(programs)
        ],
        on_exit=_on_exit,
    )
    try:
        # Until the process ends, so that a new user waits until both servers are down.
        users = FileLock(places.users_lock)
        while not asked and not users.try_exclusive():
            servers.poll()
            time.sleep(_POLL_S)
    finally:
        ending = [server for server in servers.processes if server.running]
        servers.stop(_GRACE_S)
        for server in ending:
            if server.process:
                _say(f"{server.name} stopped with exit code {server.process.returncode}")


def _start(program: Program) -> subprocess.Popen[bytes]:
    with FileLock(program.lock_path) as lock:
        if not wait_until(lock.try_exclusive, timeout_s=_PREDECESSOR_S):
            raise ServerError(f"another {program.name} still uses {program.lock_path.parent}")
        program.prepare(lock)
        process = program.start(lock)
    _say(f"{program.name} started as process {process.pid}")
    return process


def _on_exit(server: SupervisedProcess, code: int) -> None:
    if server.given_up:
        raise ServerError(f"{server.name} died {server.deaths} times right after its start")
    _say(f"{server.name} ended with exit code {code}; next start in {server.restart.pause_s(server.deaths):.1f} s")


def main() -> None:
    """Entry point. The lock's descriptor stays open until we end, which is what says that we live."""
    places, descriptor = Places(Path(sys.argv[1])), int(sys.argv[2])
    # The one who started us waits for this first process only and never has a zombie.
    if os.fork():
        os._exit(0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    try:
        keep(places)
    except LibraError as error:
        _say(str(error))
        sys.exit(error.exit_code)


def _server_environment() -> dict[str, str]:
    """Nothing of the user's: no secrets, and no PGPORT or PGDATA that would change what we start."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _say(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
