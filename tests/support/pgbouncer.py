"""A real pgbouncer in transaction mode in front of the tests' Postgres."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import make_url

from infra.process import wait_until
from tests.support.processes import stop

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_CONFIGURATION = """
[databases]
* = host={sockets} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
"""


@contextmanager
def pooled(database_url: str, folder: Path, *, sessions: int) -> Iterator[str]:
    """The database's URL through a pooler whose clients share so many sessions."""
    url = make_url(database_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = free.getsockname()[1]
    configuration = folder / "pgbouncer.ini"
    sockets, port = str(url.query["host"]), url.port or 5432
    configuration.write_text(
        _CONFIGURATION.format(sockets=sockets, port=port, user=url.username, listen=listen, sessions=sessions)
    )
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to be root
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([PGBOUNCER or "pgbouncer", *as_nobody, str(configuration)], stdout=log, stderr=log)

    def answers() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", listen), timeout=1):
            return True
        return False

    try:
        assert wait_until(answers, timeout_s=20), (folder / "pgbouncer.log").read_text()
        # "public" and "pgbouncer" as Prisma's users have them in their URLs.
        yield f"postgres://{url.username}@127.0.0.1:{listen}/{url.database}?pgbouncer=true&schema=public"
    finally:
        stop(process, grace_s=5)
