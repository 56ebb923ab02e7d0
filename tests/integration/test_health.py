"""`libra fleet health` against a real Redis: what a container's health check sees."""

import socket

import pytest
from click.testing import CliRunner

from infra.coordination.store import open_coordination
from infra.errors import ServerError
from infra.settings import Settings
from libra_fleet.cli.fleet import health
from schemas.fleet import Announcement


@pytest.fixture
def configured(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LIBRA_REDIS_URL", redis_url)
    return redis_url


def _run(*options: str) -> int:
    result = CliRunner().invoke(health, options)
    return result.exception.exit_code if isinstance(result.exception, ServerError) else result.exit_code


def test_redis_alone_is_enough_without_a_role(configured: str) -> None:
    assert _run() == 0


def test_worker_is_healthy_from_its_announcement_on(configured: str, settings: Settings) -> None:
    assert _run("--worker") == ServerError.exit_code
    worker_id = f"{socket.gethostname()}-1-0"
    coordination = open_coordination(configured, settings)
    coordination.presence.announce(Announcement(id=worker_id, kind="worker", guard="fake", state="ready"))
    assert _run("--worker") == 0
    assert _run("--collector") == ServerError.exit_code


def test_unreachable_redis_is_unhealthy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBRA_REDIS_URL", "redis://127.0.0.1:1/0")
    assert _run() == ServerError.exit_code
