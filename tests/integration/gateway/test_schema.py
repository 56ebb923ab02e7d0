"""Whatever the OpenAPI document allows, and much that it does not, is answered without a 5xx."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error

from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.app import build_app

_EXAMPLES: Final = 25


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """No waiting for verdicts that nobody gives, and no limit in the way."""
    return settings.model_copy(
        update={
            "gateway_wait_s": 0.01,
            "tenant_items_per_minute": 10**9,
            "tenant_pending_items": 10**9,
            "live_high_water_age_s": 3600,
        }
    )


def test_nothing_that_the_document_allows_or_forbids_breaks_the_gateway(
    services: Services, service: dict[str, str]
) -> None:
    app = build_app(services, default_guard="fake", knows_policy=lambda _: True)
    asked = 0
    assert "HTTPValidationError" not in json.dumps(app.openapi()), "errors are problem documents, in the document too"
    with TestClient(app):
        document = schemathesis.openapi.from_asgi("/openapi.json", app)
        for found in document.get_all_operations():
            for mode in schemathesis.GenerationMode:
                asked += _ask(found.ok(), mode, service)

    assert asked > 200


def _ask(operation: Any, mode: schemathesis.GenerationMode, headers: dict[str, str]) -> int:
    """Send what the operation's description gives rise to; returns how many requests that was."""
    asked = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis_settings(
        max_examples=_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        response = case.call(headers=headers)
        if response.status_code != 503:  # nobody judges here, and a moderation says so: "not judged in time"
            case.validate_response(response, checks=[not_a_server_error])
        else:
            assert response.json()["type"].endswith(":not-judged-in-time")
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"]

    with contextlib.suppress(Unsatisfiable):  # an operation without parameters has nothing that could be wrong
        ask()
    return asked
