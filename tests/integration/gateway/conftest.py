"""A gateway within the test's own process, on real servers, and keys for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from infra.ledger.keys import create_key
from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.app import build_app
from schemas.access import Role

POLICY = "house-rules"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Small limits, so that tests reach them."""
    return settings.model_copy(
        update={
            "gateway_body_bytes": 64 * 1024,
            "gateway_file_bytes": 128 * 1024,
            "gateway_wait_s": 0.2,
            "gateway_key_cache_s": 0,
        }
    )


@pytest.fixture
def api(services: Services) -> Iterator[TestClient]:
    """A client without a key."""
    app = build_app(services, default_guard="fake", knows_policy=lambda name: name == POLICY)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def key_for(services: Services) -> Callable[..., dict[str, str]]:
    """Headers with a new key."""

    def make(*, tenant: str = "acme", role: Role = Role.SERVICE) -> dict[str, str]:
        _, secret = create_key(services.engine, tenant=tenant, role=role)
        return {"Authorization": f"Bearer {secret}"}

    return make


@pytest.fixture
def service(key_for: Callable[..., dict[str, str]]) -> dict[str, str]:
    """Headers of a service of the tenant acme."""
    return key_for()
