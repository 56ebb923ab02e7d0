"""A full disk under the embedded servers, and space again: a real file system of a few megabytes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from infra.process import wait_until
from infra.servers.embedded import EmbeddedServers, ServerUrls, is_running
from infra.servers.places import Places

SIZE = "160m"
MOST_QUICK_DEATHS = 4
"""What the keeper allows a server that never worked."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small file system needs root on Linux"
)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, which user nobody may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        disk = Path(folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "tmpfs", folder], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that takes every free byte."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return ballast


def write(urls: ServerUrls, text: str) -> None:
    with psycopg.connect(urls.database_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        connection.execute("INSERT INTO kept VALUES (%s)", [text])
    with redis.Redis.from_url(urls.redis_url) as client:
        client.rpush("kept", text)


def read(urls: ServerUrls) -> tuple[list[str], list[str]]:
    with psycopg.connect(urls.database_url.replace("+psycopg", "")) as connection:
        rows = [row[0] for row in connection.execute("SELECT value FROM kept")]
    with redis.Redis.from_url(urls.redis_url, decode_responses=True) as client:
        return rows, client.lrange("kept", 0, -1)


def until_postgres_dies(urls: ServerUrls) -> None:
    """Write what needs new WAL segments until the server is down for want of space."""
    with contextlib.suppress(psycopg.Error):
        while True:
            with psycopg.connect(urls.database_url.replace("+psycopg", "")) as connection:
                connection.execute("SELECT pg_switch_wal()")
                connection.execute("CREATE TABLE IF NOT EXISTS ballast (value text)")
                connection.execute("INSERT INTO ballast SELECT repeat('ballast', 300) FROM generate_series(1, 9999)")


def works(urls: ServerUrls) -> bool:
    try:
        write(urls, "after")
    except (psycopg.Error, redis.RedisError):
        return False
    return True


def test_servers_come_back_when_the_space_does_however_often_they_died_for_want_of_it(small_disk: Path) -> None:
    state = small_disk / "state"
    log = Places(state).log("keeper")
    with EmbeddedServers(state) as urls:
        write(urls, "before")
        ballast = fill(small_disk)
        until_postgres_dies(urls)
        fill(small_disk)  # what its own clean-up gave free

        def deaths() -> int:
            return log.read_text().count("postgres ended with")

        # The log lies on the full disk as well: it takes what fits into its last page.
        assert wait_until(lambda: deaths() > MOST_QUICK_DEATHS or not is_running(state), timeout_s=60)
        assert is_running(state)
        ballast.unlink()

        assert wait_until(lambda: works(urls), timeout_s=60)
        rows, entries = read(urls)
        assert rows[0] == entries[0] == "before"
