"""Faults of the two servers: killed, emptied, promoted without their last commits, read-only, full, slow, cut off.

Each leaves the server sound when it ends. None of them is done to a server that the drill did not start, save those
that a session's own rights allow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from psycopg import sql

from infra.process import wait_until
from libra_fleet.drill.ground import Ground, Strike, described

_FLUSH_DELAY_US: Final = 100_000
_BLOCK: Final = 1 << 20
_GONE_S: Final = 20.0


def kill_valkey(ground: Ground) -> Strike | None:
    """Kill -9 Valkey; its keeper starts it again."""
    return _kill_server(ground, "valkey")


def kill_postgres(ground: Ground) -> Strike | None:
    """Kill -9 Postgres; its keeper starts it again."""
    return _kill_server(ground, "postgres")


def flush(ground: Ground) -> Strike:
    """Empty the broker."""
    ground.forget()
    return Strike("everything on the broker")


def restore_aof(ground: Ground) -> Strike | None:
    """Bring the broker back as it was at the start: what a failover to a lagging replica, or a restored file, does."""
    server = ground.server("valkey")
    if server is None:
        return None
    folder = ground.places.valkey_data
    copy = Path(tempfile.mkdtemp(prefix="libra-aof-", dir=folder.parent)) / "aof"
    shutil.copytree(folder / "appendonlydir", copy)

    def restore() -> None:
        keeper = ground.keeper()
        keeper.suspend()
        try:
            current = ground.server("valkey")
            if current is not None:
                current.kill()
            # Its zombie is the keeper's to reap; what matters is that it has let go of its files.
            wait_until(lambda: current is None or current.status() == "zombie", timeout_s=_GONE_S)
            shutil.rmtree(folder / "appendonlydir")
            shutil.copytree(copy, folder / "appendonlydir")
        finally:
            keeper.resume()
        shutil.rmtree(copy.parent)

    return Strike("the broker's file goes back", restore)


def cut_sessions(ground: Ground) -> Strike:
    """Cut every connection to both servers."""
    ground.end_sessions()
    with ground.broker() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    return Strike("every connection")


def promote(ground: Ground) -> Strike:
    """Take a replica of the ledger now and promote it in the end: commits in between are lost."""
    replica, old = f"{ground.database}_replica", f"{ground.database}_old"
    ground.on_database("DROP DATABASE IF EXISTS {}", old)
    with _closed(ground):
        ground.on_database("CREATE DATABASE {} TEMPLATE {}", replica, ground.database)

    def switch() -> None:
        with _closed(ground):
            ground.on_database("ALTER DATABASE {} RENAME TO {}", ground.database, old)
            ground.on_database("ALTER DATABASE {} RENAME TO {}", replica, ground.database)

    return Strike("a replica that lacks the last commits", switch)


def read_only(ground: Ground) -> Strike:
    """Make the primary read-only; sessions opened meanwhile stay so afterwards, as those to a demoted primary do."""
    ground.on_database("ALTER DATABASE {} SET default_transaction_read_only = on")
    ground.end_sessions()

    def writable() -> None:
        ground.on_database("ALTER DATABASE {} RESET default_transaction_read_only")

    return Strike("postgres read-only", writable)


def fill_disk(ground: Ground) -> Strike | None:
    """Fill the servers' file system, which is a small one of their own, to its last byte."""
    if not os.path.ismount(ground.places.state):
        return None
    ballast = ground.places.state / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (_BLOCK, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return Strike("the servers' disk is full", ballast.unlink)


def slow_disk(ground: Ground) -> Strike:
    """Each commit waits a tenth of a second for its flush, and each command of the broker for its own."""
    _alter_system(ground, commit_delay=_FLUSH_DELAY_US, commit_siblings=0)
    with ground.broker() as client:
        client.config_set("appendfsync", "always")

    def fast() -> None:
        _alter_system(ground, commit_delay=None, commit_siblings=None)
        with ground.broker() as client:
            client.config_set("appendfsync", "everysec")

    return Strike("commits take 0.1 s longer", fast)


@contextlib.contextmanager
def _closed(ground: Ground) -> Iterator[None]:
    """Nobody is connected to the ledger's database in here."""
    name = ground.database
    ground.on_database("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
    try:
        ground.end_sessions()
        yield
    finally:
        ground.on_database("ALTER DATABASE {} ALLOW_CONNECTIONS true", name)


def _alter_system(ground: Ground, **values: int | None) -> None:
    with ground.administrator() as connection:
        for name, value in values.items():
            change = sql.SQL("SET {} = {}") if value is not None else sql.SQL("RESET {}")
            parts = (sql.Identifier(name), sql.Literal(value))
            connection.execute(sql.SQL("ALTER SYSTEM {}").format(change.format(*parts)))
        connection.execute("SELECT pg_reload_conf()")


def _kill_server(ground: Ground, name: str) -> Strike | None:
    server = ground.server(name)
    if server is None:
        return None
    hit = described([server])
    server.kill()
    return Strike(hit)
