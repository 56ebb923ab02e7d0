"""Servers for the tests: one embedded Valkey and Postgres per session, an empty database in each per test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from infra.ledger.engine import open_ledger, upgrade
from infra.servers.embedded import EmbeddedServers, ServerUrls
from infra.servers.services import Services
from infra.settings import Settings
from tests.support.database import fresh_database

# Before torch is loaded, here and in what tests start: three test processes and their fleets share the cores, and
# threads of matrix products that wait for each other by spinning took a quarter of the time of all tests near a model.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is, and nothing about the code.
hypothesis.settings.register_profile("libra", deadline=None)
hypothesis.settings.load_profile("libra")

# 0 is left to tests that use `servers` directly; a straggler of one test does not meet the next one.
_REDIS_DATABASES = itertools.cycle(range(1, 15))
_MODULE_REDIS_DATABASE = 15


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
    """A Postgres database of this test's own, empty."""
    with fresh_database(servers) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_database(servers: ServerUrls) -> Iterator[str]:
    """The name of a database with the ledger's tables; nobody stays connected, so that tests can copy it."""
    with fresh_database(servers) as url:
        engine = open_ledger(url)
        upgrade(engine)
        engine.dispose()
        yield str(engine.url.database)


@pytest.fixture
def ledger_url(servers: ServerUrls, migrated_database: str) -> Iterator[str]:
    """A Postgres database of this test's own, with the ledger's tables."""
    with fresh_database(servers, copy_of=migrated_database) as url:
        yield url


def settings_below(folder: Path) -> Settings:
    """Settings with short waits, so that tests need not be patient."""
    return Settings(
        state_dir=folder / "state",
        reconcile_every_s=0.1,
        bulk_lease_s=1,
        live_lease_s=1,
        drain_s=20,
        wait_for_servers_s=5,
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with short waits and a state folder of this test's own."""
    return settings_below(tmp_path)


@pytest.fixture
def services(settings: Settings, redis_url: str, ledger_url: str) -> Iterator[Services]:
    """A migrated ledger, an empty coordination store and a publisher."""
    found = Services(settings, redis_url, ledger_url, embedded=True)
    yield found
    found.engine.dispose()


@pytest.fixture(scope="module")
def module_services(
    servers: ServerUrls, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """What `services` is, for all tests of a module that do not mind each other's runs."""
    redis_url = servers.redis_url.replace("db=0", f"db={_MODULE_REDIS_DATABASE}")
    with (
        redis.Redis.from_url(redis_url) as client,
        fresh_database(servers, copy_of=migrated_database) as ledger_url,
    ):
        client.flushdb()
        found = Services(settings_below(tmp_path_factory.mktemp("module")), redis_url, ledger_url, embedded=True)
        yield found
        found.engine.dispose()
