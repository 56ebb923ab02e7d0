"""Valkey and Postgres for a machine without servers: shared by all our processes, gone with the last of them.

    with EmbeddedServers(settings.state_dir) as urls:
        ...

The first user starts a keeper (`infra.servers.keeper`), which is the parent of both servers; later ones attach. A
user is a shared flock on users.lock and so cannot be forgotten: when the last one leaves or is killed, the keeper
stops the servers. Children of a user get the URLs in their environment and do not attach; a child *forked* without
exec counts as a user for as long as it lives.

Knows nothing about chunks, tables or settings.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import ServerError
from infra.process import FileLock, is_held, module_path, python_module, wait_until
from infra.servers.keeper import DATABASE
from infra.servers.places import POSTGRES_PORT, Places, find_binaries
from infra.settings import child_environment

_START_S: Final = 90.0
"""First start, or Postgres replaying its log after a crash."""
_STOP_S: Final = 60.0
_POLL_S: Final = 0.02
_LOG_LINES: Final = 8


@dataclass(frozen=True)
class ServerUrls:
    """Addresses of the servers, as redis-py and SQLAlchemy want them."""

    redis_url: str
    database_url: str


class EmbeddedServers:
    """Context manager: attach to the servers of a state folder, or start them.

    Leaving stops the servers if nobody else uses them, and waits for that. With `keep=False` the last one to leave
    also deletes their data.
    """

    def __init__(self, state_dir: Path, *, keep: bool = True) -> None:
        self._places = Places(state_dir)
        self._keep = keep
        self._users: FileLock | None = None

    def __enter__(self) -> ServerUrls:
        """Wait until both servers answer.

        Raises:
            ServerError: wheels missing, no place, or a server does not start; the message has its log's last lines.
        """
        if self._users:
            raise RuntimeError("entered twice: make a second EmbeddedServers")
        places = self._places
        places.make_state_dir()
        try:
            self._users = FileLock(places.users_lock)
        except OSError as error:
            raise ServerError(f"cannot use the state folder: {error}; set LIBRA_STATE_DIR") from error
        try:
            _attach(places, self._users)
        except BaseException:
            self._leave()
            raise
        sockets = urlencode({"host": str(places.postgres_sockets), "port": POSTGRES_PORT})
        return ServerUrls(
            redis_url=f"unix://{quote(str(places.valkey_socket))}?db=0",
            database_url=f"postgresql+psycopg://{DATABASE}@/{DATABASE}?{sockets}",
        )

    def __exit__(self, *_: object) -> None:
        users, lock = self._users, self._places.keeper_lock
        if users and _is_last(users):
            # While we hold the lock alone nobody can attach to what is being stopped.
            if is_held(lock) and (pid := lock.read_text().strip()):
                os.kill(int(pid), signal.SIGTERM)
            if not wait_until(lambda: not is_held(lock), timeout_s=_STOP_S):
                raise ServerError(f"the embedded servers do not stop{_last_words(self._places)}")
            if not self._keep:
                self._places.remove()
        self._leave()

    def _leave(self) -> None:
        if self._users:
            self._users.close()
            self._users = None


def is_running(state_dir: Path) -> bool:
    """True if a keeper lives there: its servers run, start or stop."""
    return is_held(Places(state_dir).keeper_lock)


def _attach(places: Places, users: FileLock) -> None:
    """Become a user, start a keeper if there is none, and wait for the servers."""
    if not wait_until(users.try_shared, timeout_s=_STOP_S):
        raise ServerError(f"the embedded servers of {places.state} do not finish stopping")
    deadline = time.monotonic() + _START_S
    started = False
    while time.monotonic() < deadline:
        with FileLock(places.keeper_lock) as lock:
            if lock.try_exclusive():
                if started:
                    raise ServerError(f"the embedded servers did not start{_last_words(places)}")
                _start_keeper(places, lock)
                started = True
        if _answer(places):
            return
        time.sleep(_POLL_S)
    raise ServerError(f"the embedded servers did not answer within {_START_S:.0f} s{_last_words(places)}")


def _start_keeper(places: Places, lock: FileLock) -> None:
    """Hand the lock, already taken, to a keeper, so that two can never start."""
    places.prepare(find_binaries())
    for log in places.logs.glob("*.log"):
        log.replace(log.with_suffix(".old"))
    os.ftruncate(lock.fileno(), 0)
    command = python_module("infra.servers.keeper", str(places.state), str(lock.fileno()))
    with places.log("keeper").open("ab") as log_file:
        code = subprocess.call(
            command,
            env=child_environment(PYTHONPATH=module_path()),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=[lock.fileno()],
            start_new_session=True,  # so that Ctrl-C in the terminal reaches neither keeper nor servers
        )
    if code != 0:
        raise ServerError(f"the keeper of the embedded servers did not start{_last_words(places)}")


def _answer(places: Places) -> bool:
    try:
        socket = str(places.valkey_socket)
        with redis.Redis(unix_socket_path=socket, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()
        sockets = str(places.postgres_sockets)
        psycopg.connect(host=sockets, port=POSTGRES_PORT, user=DATABASE, dbname=DATABASE, connect_timeout=5).close()
    except (redis.RedisError, psycopg.OperationalError):
        return False
    return True


def _is_last(users: FileLock) -> bool:
    """Turn our user's lock into the only one, unless others use the servers."""
    while not users.try_exclusive():
        if users.try_shared():
            return False
        # Between our two locks the keeper took it: it is stopping by itself.
        time.sleep(_POLL_S)
    return True


def _last_words(places: Places) -> str:
    words = ""
    for log in sorted(places.logs.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        if lines:
            words += f"\n{log}:\n" + "\n".join(f"  {line}" for line in lines)
    return words
