"""Who may do what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from infra.ledger.keys import create_key, find_key, list_keys, revoke_key
from infra.servers.services import Services
from schemas.access import Role, Scope

KeyFor = Callable[..., dict[str, str]]
ITEMS = {"items": [{"text": "a"}]}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/moderations"),
        ("POST", "/v1/items"),
        ("GET", "/v1/items/item_r0123456789_0"),
        ("GET", "/v1/verdicts"),
        ("GET", "/v1/runs/r0123456789"),
        ("POST", "/v1/files"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/batches"),
    ],
)
def test_nobody_is_served_without_a_key(api: TestClient, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer lk_nobody"}, {"Authorization": "Basic eDp5"}):
        answer = api.request(method, path, headers=headers)

        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="libra-fleet"'
        assert answer.json()["field"] == "Authorization"


def test_a_revoked_key_opens_nothing(api: TestClient, services: Services) -> None:
    key, secret = create_key(services.engine, tenant="acme", role=Role.SERVICE)
    headers = {"Authorization": f"Bearer {secret}"}
    assert api.get("/v1/verdicts", headers=headers).status_code == 200
    revoke_key(services.engine, key.id)

    assert api.get("/v1/verdicts", headers=headers).status_code == 401


def test_the_ledger_holds_no_key_that_could_be_used(services: Services) -> None:
    key, secret = create_key(services.engine, tenant="acme", role=Role.ADMIN, note="laptop")
    with services.engine.connect() as connection:
        rows = repr(connection.execute(sa.text("SELECT * FROM api_keys")).all())

    assert secret.removeprefix("lk_") not in rows
    assert find_key(services.engine, secret) == key
    assert list_keys(services.engine, tenant="acme") == [key]
    assert list_keys(services.engine, tenant="other") == []


def test_a_viewer_may_read_and_not_submit(api: TestClient, key_for: KeyFor) -> None:
    viewer = key_for(role=Role.VIEWER)

    assert api.get("/v1/verdicts", headers=viewer).status_code == 200
    assert api.post("/v1/items", headers=viewer, json=ITEMS).status_code == 403
    assert [scope for scope in Scope if scope in Role.VIEWER.scopes] == [Scope.READ]


def test_another_tenants_things_are_as_absent_as_what_never_was(
    api: TestClient, key_for: KeyFor, service: dict[str, str]
) -> None:
    accepted = api.post("/v1/items", headers=service, json=ITEMS).json()["data"][0]["id"]
    run = "/v1/runs/" + accepted.split("_")[1]
    stranger, admin = key_for(tenant="other"), key_for(tenant="other", role=Role.ADMIN)
    for path in (f"/v1/items/{accepted}", run):
        assert api.get(path, headers=service).status_code == 200
        assert api.get(path, headers=stranger).status_code == 404
        assert api.get(path, headers=admin).status_code == 200
    assert api.get("/v1/verdicts", headers=stranger).json()["data"] == []
