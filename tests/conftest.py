"""Servers for the tests: one embedded Valkey and Postgres per session, an empty database in each per test."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from psycopg import sql
from sqlalchemy import make_url

from infra.embedded import EmbeddedServers, ServerUrls
from infra.services import Services
from infra.settings import Settings

# 0 is left to tests that use `servers` directly; a straggler of one test does not meet the next one.
_REDIS_DATABASES = itertools.cycle(range(1, 16))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUrls]:
    """Both servers, for the whole session; their data goes with them."""
    with EmbeddedServers(tmp_path_factory.mktemp("servers"), keep=False) as urls:
        yield urls


@pytest.fixture
def redis_url(servers: ServerUrls) -> Iterator[str]:
    """A Redis database of this test's own, empty."""
    url = servers.redis_url.replace("db=0", f"db={next(_REDIS_DATABASES)}")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def database_url(servers: ServerUrls) -> Iterator[str]:
    """A Postgres database of this test's own, empty; dropped afterwards even if connections are left open."""
    url = make_url(servers.database_url)
    name = f"test_{uuid.uuid4().hex}"
    admin = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield url.set(database=name).render_as_string(hide_password=False)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with short waits, so that tests need not be patient."""
    return Settings(
        state_dir=tmp_path / "state",
        reconcile_every_s=0.1,
        bulk_lease_s=1,
        live_lease_s=1,
        drain_s=20,
        wait_for_servers_s=5,
    )


@pytest.fixture
def services(settings: Settings, redis_url: str, database_url: str) -> Iterator[Services]:
    """A migrated ledger, an empty board and a publisher."""
    found = Services(settings, redis_url, database_url, embedded=True)
    yield found
    found.engine.dispose()
