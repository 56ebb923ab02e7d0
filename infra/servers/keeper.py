"""The keeper: a small process that is the parent of the embedded Valkey and Postgres for as long as anyone uses them.

Started by `infra.servers.embedded` as `python -m infra.servers.keeper STATE_DIR LOCK_DESCRIPTOR`. It restarts a server
that dies, and stops both once no process holds a shared lock on users.lock, or on SIGTERM. If the keeper itself is
killed, the kernel stops the servers. It has no threads, so that its preexec_fn is safe.

Knows nothing about users, URLs, Redis commands or SQL beyond creating the database; imports nothing heavy, since
every start waits for it.
"""

from __future__ import annotations

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
_RESTART: Final = Restart(first_pause_s=0.2, steady_after_s=10, max_deaths=4)


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


def keep(places: Places) -> None:
    """Run both servers until no process uses them or SIGTERM comes.

    Raises:
        ServerError: a server cannot be started, or keeps dying.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    binaries = find_binaries()
    programs = [_postgres(places, binaries), _valkey(places, binaries)]
    servers = Supervisor(
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


def _say(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
