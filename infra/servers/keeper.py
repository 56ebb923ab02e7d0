"""The keeper: a small process that is the parent of the embedded Valkey and Postgres for as long as anyone uses them.

Started by `infra.servers.embedded` as `python -m infra.servers.keeper STATE_DIR LOCK_DESCRIPTOR`. It restarts a server
that dies, and stops both once no process holds a shared lock on users.lock, or on SIGTERM. Once both servers have been
ready it never gives up: a full disk keeps a server down for hours, and ends. If the keeper itself is killed, the kernel
stops the servers. It has no threads, so that its preexec_fn is safe.

Knows nothing about users, URLs, Redis commands or SQL beyond creating the database; imports nothing heavy, since
every start waits for it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from infra.errors import LibraError, ServerError
from infra.process import FileLock, tied_to_caller, wait_until
from infra.servers.places import POSTGRES_PORT, Binaries, Places, find_binaries, postgres_user
from infra.supervise import Restart, SupervisedProcess, Supervisor

DATABASE: Final = "libra"
"""Both the database and its owner."""

_POLL_S: Final = 0.1
_GRACE_S: Final = 30.0
_PREDECESSOR_S: Final = 30.0
_RESTART: Final = Restart(first_pause_s=0.2, longest_pause_s=30, steady_after_s=10, max_deaths=4)
"""The limit of deaths holds until both servers were ready once: a first start that cannot work is an error at once."""


@dataclass(frozen=True)
class Program:
    """One server: its command, and the folder that its data lie in."""

    name: str
    folder: Path
    command: list[str]
    stop_signal: signal.Signals
    prepare: Callable[[FileLock], None] = lambda _: None
    """Clear what a killed predecessor left behind, create the data. The caller holds the folder's lock."""
    user: pwd.struct_passwd | None = None


def _valkey(places: Places, binaries: Binaries) -> Program:
    """The broker: append-only, on a Unix socket only. It replaces a stale socket, and cuts off its file's torn end."""
    options = {
        "port": "0",
        "unixsocket": str(places.valkey_socket),
        "unixsocketperm": "700",
        "protected-mode": "yes",
        "dir": str(places.valkey_data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [str(binaries.valkey_server), *(word for name, value in options.items() for word in (f"--{name}", value))]
    return Program("valkey", places.valkey_data, command, signal.SIGTERM)


def _postgres(places: Places, binaries: Binaries) -> Program:
    """The ledger's database: durable, on a Unix socket in a private folder, which is its authentication."""
    data = places.postgres_home / "data"
    options = {
        "listen_addresses": "",
        "port": str(POSTGRES_PORT),
        "unix_socket_directories": str(places.postgres_sockets),
        "unix_socket_permissions": "0700",
        "shared_buffers": "128MB",
        "max_connections": "100",
        "wal_compression": "on",
        "fsync": "on",
        "synchronous_commit": "on",
        "log_checkpoints": "off",
    }
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    program = Program(
        "postgres",
        places.postgres_home,
        [str(binaries.postgres), "-D", str(data), *settings],
        signal.SIGINT,  # "fast": SIGTERM would wait until all clients have left
        user=postgres_user(),
    )

    def run(command: list[str], lock: FileLock, statement: str = "") -> None:
        process = _popen(replace(program, command=command, stop_signal=signal.SIGKILL), places, lock, subprocess.PIPE)
        process.communicate(statement.encode())
        if process.returncode != 0:
            raise ServerError(f"{Path(command[0]).name} failed with exit code {process.returncode}")

    def prepare(lock: FileLock) -> None:
        # Stale process ids may be another process's by now.
        (data / "postmaster.pid").unlink(missing_ok=True)
        for stale in places.postgres_sockets.glob(".s.PGSQL.*"):
            stale.unlink()
        if data.exists():
            return
        # Built under another name, so that a half-made folder is never taken for whole.
        fresh = data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        initdb = [str(binaries.initdb), "-D", str(fresh), "-U", DATABASE, "--auth=trust"]
        run([*initdb, "--encoding=UTF8", "--locale=C", "--no-instructions"], lock)
        alone = [str(binaries.postgres), "--single", "-D", str(fresh), "postgres"]
        run(alone, lock, f"CREATE DATABASE {DATABASE}\n")
        fresh.rename(data)

    return replace(program, prepare=prepare)


def _popen(
    program: Program, places: Places, lock: FileLock, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a server, which inherits the lock and the tie to us."""
    user = program.user
    with places.log(program.name).open("ab") as log:
        return subprocess.Popen(
            program.command,
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd="/",
            # Nothing of the user's: no secrets, and no PGPORT or PGDATA that would change what we start.
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            pass_fds=[lock.fileno()],
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            preexec_fn=tied_to_caller(program.stop_signal),  # noqa: PLW1509  no threads here
        )


def _start(program: Program, places: Places) -> subprocess.Popen[bytes]:
    """Start a server once none of its processes is left: every one of them inherits the lock in its data folder."""
    with FileLock(program.folder / "lock") as lock:
        if not wait_until(lock.try_exclusive, timeout_s=_PREDECESSOR_S):
            raise ServerError(f"another {program.name} still uses {program.folder}")
        program.prepare(lock)
        process = _popen(program, places, lock)
    _say(f"{program.name} started as process {process.pid}")
    return process


class _Keeper:
    """Both servers of one state folder, and whether they ever worked."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._served = False
        binaries = find_binaries()
        programs = [_postgres(places, binaries), _valkey(places, binaries)]
        self.servers = Supervisor(
            [
                SupervisedProcess(
                    program.name,
                    partial(_start, program, places),
                    _RESTART,
                    stage=stage,
                    stop_signal=program.stop_signal,
                )
                for stage, program in enumerate(programs)
            ],
            on_exit=self._on_exit,
        )

    def poll(self) -> None:
        """Restart what has died.

        Raises:
            ServerError: a server cannot be started, or dies again and again, and no user was ever served.
        """
        try:
            self.servers.poll()
        except (LibraError, OSError) as error:
            if not self._served:
                raise
            _say(f"a server cannot be started: {error}")  # the failed start counted as a death: the next has a pause
        self._served = self._served or _are_ready(self._places)

    def _on_exit(self, server: SupervisedProcess, code: int) -> None:
        if server.given_up and not self._served:
            raise ServerError(f"{server.name} died {server.deaths} times right after its start")
        _say(f"{server.name} ended with exit code {code}; next start in {server.restart.pause_s(server.deaths):.1f} s")


def _are_ready(places: Places) -> bool:
    """True if both servers accept connections, by what they write; a query would need a client here."""
    pid_file = places.postgres_home / "data" / "postmaster.pid"
    try:
        return places.valkey_socket.exists() and pid_file.read_text().rstrip().endswith("ready")
    except OSError:
        return False


def keep(places: Places) -> None:
    """Run both servers until no process uses them or SIGTERM comes.

    Raises:
        ServerError: a server cannot be started, or keeps dying, before both were ready once.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    keeper = _Keeper(places)
    servers = keeper.servers
    try:
        # Until the process ends, so that a new user waits until both servers are down.
        users = FileLock(places.users_lock)
        while not asked and not users.try_exclusive():
            keeper.poll()
            time.sleep(_POLL_S)
    finally:
        ending = [server for server in servers.processes if server.running]
        servers.stop(_GRACE_S)
        for server in ending:
            if server.process:
                _say(f"{server.name} stopped with exit code {server.process.returncode}")


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


def _say(message: str) -> None:
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n"
    with contextlib.suppress(OSError):  # the log may lie on the very disk that is full
        os.write(sys.stderr.fileno(), line.encode())


if __name__ == "__main__":
    main()
