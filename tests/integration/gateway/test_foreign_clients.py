"""Vendors' own clients, each from its package in an environment of its own, against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import httpx2
import pytest

from infra.ledger.keys import create_key, signing_secret
from infra.servers.services import Services
from schemas.access import Role
from tests.support.clients import LITELLM_KEY, server_of, told_by
from tests.support.fleet import Fleet
from tests.support.gateway import free_port, start_gateway

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(900)]  # an environment is made on first use
MASTER = "0123456789abcdef0123456789abcdef"
SAFE, UNSAFE, UNREAD, DEAD = (f"你好 [[fake:{what}]]" for what in ("safe", "unsafe", "unparseable", "raise-in-render"))
TEXTS = (SAFE, UNSAFE, UNREAD, DEAD)


class Gateway(NamedTuple):
    """A gateway's address, and a key for it."""

    host: str
    key_id: str
    key: str

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def signing_secret(self) -> str:
        return signing_secret(MASTER, self.key_id)


@pytest.fixture(scope="module")
def gateway(module_fleet: Fleet, module_services: Services) -> Gateway:
    """A gateway of the fake guard with a worker behind it."""
    port = free_port()
    start_gateway(module_fleet, port, LIBRA_CONNECTOR_SECRET=MASTER)
    made, secret = create_key(module_services.engine, tenant="acme", role=Role.SERVICE)
    return Gateway(f"127.0.0.1:{port}", made.id, secret)


def test_googles_client_of_perspective(gateway: Gateway) -> None:
    seen = told_by("perspective", gateway.url, gateway.key, *TEXTS)
    safe, unsafe, unread, dead = seen["answers"]

    assert safe["TOXICITY"] < 0.5 <= unsafe["TOXICITY"]
    assert unsafe["THREAT"] == unsafe["TOXICITY"], "this guard names no category"
    assert unread == dead == {"TOXICITY": 1.0, "THREAT": 1.0}, "what was not judged never passes"
    assert seen["wrong key"] == ["HttpError", 401, "unknown or revoked API key"]


def test_aliyuns_sdk(gateway: Gateway) -> None:
    seen = told_by("aliyun", gateway.host, gateway.key_id, gateway.signing_secret, *TEXTS)
    safe, unsafe, unread, dead = seen["answers"]

    assert (safe["code"], safe["level"], safe["rows"], safe["data_id"]) == (200, "none", [["nonLabel", None]], "d1")
    assert unsafe["level"] == "high"
    assert unsafe["rows"][0][0] == "libra_unsafe"
    assert unsafe["rows"][0][1] > 50
    assert unread["level"] == dead["level"] == "medium", "what was not judged never passes"
    classes, code = seen["wrong secret"]
    assert code == "SignatureDoesNotMatch"
    assert "DaraException" in classes or "TeaException" in classes, "the SDK's own exception"


def test_tencents_sdk(gateway: Gateway) -> None:
    seen = told_by("tencent", gateway.host, gateway.key_id, gateway.signing_secret, *TEXTS)
    safe, unsafe, unread, dead = seen["answers"]

    assert (safe["suggestion"], safe["label"], safe["details"], safe["data_id"]) == ("Pass", "Normal", [], "d1")
    assert (unsafe["suggestion"], unsafe["label"]) == ("Block", "Custom")
    assert unsafe["score"] > 50
    assert unsafe["details"] == [["Custom", "Block", unsafe["score"]]]
    assert unread["suggestion"] == dead["suggestion"] == "Review", "what was not judged never passes"
    assert seen["wrong secret"] == ["TencentCloudSDKException", "AuthFailure.SignatureFailure"]


def test_openais_own_guardrail_which_reads_one_category(gateway: Gateway) -> None:
    safe, *others = told_by("openai-guardrails", gateway.url, gateway.key, *TEXTS)

    assert safe is False
    assert others == [True] * len(others), "unsafe, and what was not judged, never passes"


LITELLM = """
model_list:
  - {model_name: kind, litellm_params: {model: openai/x, api_key: none, mock_response: "你好 [[fake:safe]]"}}
  - {model_name: rude, litellm_params: {model: openai/x, api_key: none, mock_response: "你好 [[fake:unsafe]]"}}
  - {model_name: odd, litellm_params: {model: openai/x, api_key: none, mock_response: "你好 [[fake:unparseable]]"}}
guardrails:
  - guardrail_name: libra
    litellm_params: {guardrail: generic_guardrail_api, mode: [pre_call, post_call], api_base: "URL", api_key: "KEY",
                     unreachable_fallback: fail_open}
  - guardrail_name: gone-open
    litellm_params: {guardrail: generic_guardrail_api, mode: pre_call, api_base: "http://127.0.0.1:9", api_key: "KEY",
                     unreachable_fallback: fail_open}
  - guardrail_name: gone-closed
    litellm_params: {guardrail: generic_guardrail_api, mode: pre_call, api_base: "http://127.0.0.1:9", api_key: "KEY",
                     unreachable_fallback: fail_closed}
"""


@pytest.fixture(scope="module")
def litellm(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """LiteLLM's own proxy, which fails open where it may, in front of models that answer from the configuration."""
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(LITELLM.replace("URL", gateway.url).replace("KEY", gateway.key))
    port = free_port()
    command = ("litellm", "--config", "config.yaml", "--port", str(port))
    with (
        server_of("litellm", *command, folder=folder, port=port),
        httpx2.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {LITELLM_KEY}"},
            timeout=60,
            trust_env=False,
        ) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("guardrail", "text", "model", "passes"),
    [
        ("libra", SAFE, "kind", True),
        ("libra", UNSAFE, "kind", False),
        ("libra", UNREAD, "kind", False),
        ("libra", DEAD, "kind", False),
        ("libra", SAFE, "rude", False),
        ("libra", SAFE, "odd", False),
        ("gone-open", SAFE, "kind", True),
        ("gone-closed", SAFE, "kind", False),
    ],
)
def test_litellms_proxy(litellm: httpx2.Client, guardrail: str, text: str, model: str, passes: bool) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "guardrails": [guardrail]}
    answer = litellm.post("/v1/chat/completions", json=body)

    assert (answer.status_code == 200) is passes, answer.text
    if passes:
        assert answer.json()["choices"][0]["message"]["content"] == "你好 [[fake:safe]]"
    else:
        assert text not in answer.text
