"""Two Valkeys, a primary and its replica, and a sentinel that watches them, all of the embedded server's binary."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from infra.process import wait_until
from infra.servers.places import find_binaries
from tests.support.processes import stop

SERVICE = "libra"


class Replicated:
    """The processes, with the address that names the sentinel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []
        for _ in range(3):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._ports.append(free.getsockname()[1])
        self.url = f"sentinel://127.0.0.1:{self._ports[2]}/{SERVICE}/0"

    def start(self) -> None:
        """Start all three; returns when the replica follows and the sentinel knows it."""
        primary, replica, sentinel = self._ports
        common = ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
        self._spawn("primary", "--port", str(primary), *common)
        self._wait(lambda: bool(self._client(primary).ping()))
        self._spawn("replica", "--port", str(replica), "--replicaof", f"127.0.0.1 {primary}", *common)
        self._wait(lambda: self._client(replica).info("replication")["master_link_status"] == "up")
        watched = self._folder / "sentinel.conf"
        watched.write_text(
            f"port {sentinel}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 5000\n"
        )
        self._spawn("sentinel", str(watched), "--sentinel")
        self._wait(lambda: self._primary()["num-slaves"] == 1)

    def kill_primary(self) -> None:
        """kill -9."""
        self._processes[0].kill()
        self._processes[0].wait()

    def failed_over(self) -> bool:
        """Whether the sentinel names the other server."""
        return bool(self._primary()["port"] == self._ports[1])

    def stop(self) -> None:
        """End what still runs."""
        for process in self._processes:
            stop(process, grace_s=5)

    def _primary(self) -> dict[str, int]:
        found: dict[str, int] = self._client(self._ports[2]).sentinel_master(SERVICE)  # type: ignore[no-untyped-call]
        return found

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, decode_responses=True)

    def _spawn(self, name: str, *arguments: str) -> None:
        home = self._folder / name
        home.mkdir()
        with (home / "log").open("wb") as log:
            command = [str(find_binaries().valkey_server), *arguments, "--dir", str(home)]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=home))

    def _wait(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            try:
                return condition()
            except redis.RedisError:
                return False

        assert wait_until(holds, timeout_s=30)


@contextmanager
def replicated(folder: Path) -> Iterator[Replicated]:
    """All three, gone afterwards."""
    servers = Replicated(folder)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
