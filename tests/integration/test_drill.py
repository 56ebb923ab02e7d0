"""`libra fleet drill` keeps its hands off servers that it did not start."""

from __future__ import annotations

import psycopg
import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import make_url

from infra.errors import UsageError
from infra.servers.services import Services
from infra.settings import load_settings
from libra_fleet.cli import drill as command


@pytest.fixture
def configured(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    return services


def refused(*arguments: str) -> UsageError:
    error = CliRunner().invoke(command.drill, arguments).exception
    assert isinstance(error, UsageError)
    return error


def test_configured_servers_are_refused_unless_asked_for(configured: Services) -> None:
    assert "--on-configured" in str(refused())


def test_configured_servers_are_never_killed(configured: Services) -> None:
    assert "does not kill servers" in str(refused("--on-configured", "--mix", "valkey"))


def test_on_configured_servers_a_drill_leaves_nothing_behind(configured: Services) -> None:
    with redis.Redis.from_url(configured.redis_url) as client:
        client.set("libra:board:mine", "1")
        with command._servers(load_settings(), None, on_configured=True) as (found, _, _):
            found.engine  # noqa: B018 - migrates the drill's own database
            found.coordination.notices.cancelled("r")
            name = make_url(found.database_url).database
            assert name == found.settings.namespace
        left = [key for key in client.scan_iter() if key != b"libra:board:mine"]
        mine = client.get("libra:board:mine")
    admin = make_url(configured.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin) as connection:
        databases = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchall()

    assert (left, mine, databases) == ([], b"1", [])
