"""Foreign wires in the test's process: what passes, what does not, whose key counts. The ledger is settled by hand."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from infra.ledger.decisions import put_policy, set_tenant_policy
from infra.ledger.keys import create_key, revoke_key, signing_secret
from infra.process import wait_until
from infra.servers.services import Services
from infra.settings import Settings
from producer.gateway.app import build_app
from producer.gateway.connectors import signatures
from producer.gateway.connectors.signatures import ACS3, TC3, Claim, SignedRequest
from schemas.access import Role
from schemas.items import Label
from schemas.policy import Policy, SurfaceRules, Thresholds
from schemas.verdicts import CONTROVERSIAL, Outcome
from tests.support.settling import chunks_pending, settle_pending

MASTER = "0123456789abcdef0123456789abcdef"
TEXT = "要审核的文本"
UNSAFE = {"label": Label.UNSAFE, "p_unsafe": 0.97}
CONTROVERSIAL_ONE = {**UNSAFE, "categories": (CONTROVERSIAL,)}
DEAD = {"outcome": Outcome.DEAD, "label": None, "p_unsafe": None, "reason": "too hard"}
_NUMBERS = itertools.count()
UNREAD = {"outcome": Outcome.UNPARSEABLE, "label": None, "p_unsafe": None}


class Key(NamedTuple):
    """A key of a tenant, as each wire needs it."""

    id: str
    secret: str
    tenant: str = ""

    @property
    def signing_secret(self) -> str:
        return signing_secret(MASTER, self.id)


@pytest.fixture(scope="module")
def services(module_services: Services) -> Services:
    """Time enough to settle meanwhile, signed wires, small bodies; for all tests, each with a tenant of its own."""
    changed = {
        "gateway_wait_s": 20,
        "connector_secret": MASTER,
        "gateway_body_bytes": 65_536,
        "gateway_key_cache_s": 0,
        "live_high_water_age_s": 3600,  # nobody takes the chunks from their queue here
    }
    settings = Settings.model_validate({**module_services.settings.model_dump(), **changed})
    return replace(module_services, settings=settings)


@pytest.fixture(scope="module")
def api(services: Services) -> Iterator[TestClient]:
    """A client without a key."""
    with gateway_with(services) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_pending(services: Services) -> Iterator[None]:
    """Whatever a test has left unsettled is none of the next one's."""
    yield
    settle_pending(services)


@pytest.fixture
def key(services: Services) -> Key:
    """A service key of a new tenant."""
    tenant = f"tenant{next(_NUMBERS)}"
    made, secret = create_key(services.engine, tenant=tenant, role=Role.SERVICE)
    return Key(made.id, secret, tenant)


def perspective(api: TestClient, key: Key, text: str = TEXT, **more: object) -> Response:
    body = {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}, "INSULT": {}}, **more}
    return api.post("/v1alpha1/comments:analyze", params={"key": key.secret}, json=body)


def litellm(
    api: TestClient, key: Key, text: str = TEXT, headers: dict[str, str] | None = None, **more: object
) -> Response:
    body = {"input_type": "request", "texts": [text], **more}
    return api.post(
        "/beta/litellm_basic_guardrail_api", headers={"x-api-key": key.secret, **(headers or {})}, json=body
    )


def dify(api: TestClient, key: Key, text: str = TEXT, **more: object) -> Response:
    body = {"point": "app.moderation.output", "params": {"app_id": "a", "text": text}, **more}
    return api.post("/connect/dify", headers={"Authorization": f"Bearer {key.secret}"}, json=body)


def aliyun(
    api: TestClient, key: Key, text: str = TEXT, *, action: str = "TextModerationPlus", at: datetime | None = None
) -> Response:
    parameters = json.dumps({"content": text, "dataId": "d1"})
    body = str(
        api.build_request("POST", "/", data={"Service": "comment_detection", "ServiceParameters": parameters}).content,
        "ascii",
    )
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "host": "testserver",
        "x-acs-action": action,
        "x-acs-content-sha256": hashlib.sha256(body.encode()).hexdigest(),
        "x-acs-date": f"{at or datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "x-acs-signature-nonce": "n",
        "x-acs-version": "2022-03-02",
    }
    claim = Claim(ACS3, key.id, (), tuple(sorted(headers)), "")
    signature = signatures._acs3(key.signing_secret, claim, SignedRequest("POST", "/", "", headers, body.encode()))
    said = f"{ACS3} Credential={key.id},SignedHeaders={';'.join(claim.signed_headers)},Signature={signature}"
    return api.post("/", headers={**headers, "authorization": said}, content=body)


def tencent(
    api: TestClient, key: Key, text: str = TEXT, *, action: str = "TextModeration", at: datetime | None = None
) -> Response:
    body = json.dumps({"Content": base64.b64encode(text.encode()).decode(), "BizType": "comments", "DataId": "d1"})
    at = at or datetime.now(UTC)
    headers = {
        "content-type": "application/json",
        "host": "testserver",
        "x-tc-action": action,
        "x-tc-timestamp": str(int(at.timestamp())),
    }
    claim = Claim(TC3, key.id, (f"{at:%Y-%m-%d}", "tms", "tc3_request"), ("content-type", "host"), "")
    signature = signatures._tc3(key.signing_secret, claim, SignedRequest("POST", "/", "", headers, body.encode()))
    credential = "/".join((key.id, *claim.scope))
    said = f"{TC3} Credential={credential}, SignedHeaders=content-type;host, Signature={signature}"
    return api.post("/", headers={**headers, "authorization": said}, content=body)


def ogr(api: TestClient, key: Key, text: str = TEXT, **more: object) -> Response:
    event = {
        "kind": "step/request",
        "step_id": "s1",
        **dict.fromkeys(("agent_id", "agent_type", "agent_workspace", "agent_owner", "agent_user"), ""),
        "llm_protocol": "openai.chat",
        "payload": {"messages": [{"role": "user", "content": text}]},
        **more,
    }
    return api.post("/v1/evaluate", headers={"Authorization": f"Bearer {key.secret}"}, json=event)


def webhook(api: TestClient, key: Key, text: str = TEXT) -> Response:
    headers = {"Authorization": f"Bearer {key.secret}"}
    return api.post("/connect/webhook", headers=headers, json={"messages": [{"role": "user", "content": text}]})


def agentgateway(api: TestClient, key: Key, text: str = TEXT) -> Response:
    headers = {"Authorization": f"Bearer {key.secret}"}
    body = {"body": {"choices": [{"message": {"role": "assistant", "content": text}}]}}
    return api.post("/response", headers=headers, json=body)


Ask = Callable[..., Response]


def toxicity(answer: Response) -> str:
    score = answer.json()["attributeScores"]["TOXICITY"]["summaryScore"]
    assert score["type"] == "PROBABILITY"
    return "block" if score["value"] >= 0.5 else "pass"


def suggestion(answer: Response) -> str:
    said = answer.json()["Response"]
    assert "Error" not in said, said
    return str(said["Suggestion"]).lower()


def risk(answer: Response) -> str:
    body = answer.json()
    assert body["Code"] == 200, body
    return {"none": "pass", "low": "pass", "medium": "review", "high": "block"}[body["Data"]["RiskLevel"]]


class Wire(NamedTuple):
    """How a wire is asked, and what its answer tells a platform to do."""

    ask: Ask
    reads: Callable[[Response], str]
    three_way: bool = False
    error_may_pass: bool = False


WIRES = {
    "perspective": Wire(perspective, toxicity),
    "litellm": Wire(
        litellm, lambda answer: {"NONE": "pass", "BLOCKED": "block"}[answer.json()["action"]], error_may_pass=True
    ),
    "dify": Wire(dify, lambda answer: "block" if answer.json()["flagged"] else "pass", error_may_pass=True),
    "ogr": Wire(
        ogr, lambda answer: {"allow": "pass", "block": "block"}[answer.json()["decision"]], error_may_pass=True
    ),
    "webhook": Wire(webhook, lambda answer: "pass" if answer.json()["verdict"] else "block", error_may_pass=True),
    "agentgateway": Wire(
        agentgateway,
        lambda answer: "block" if "status_code" in answer.json()["action"] else "pass",
        error_may_pass=True,
    ),
    "aliyun": Wire(aliyun, risk, three_way=True),
    "tencent": Wire(tencent, suggestion, three_way=True),
}
every_wire = pytest.mark.parametrize("wire", [pytest.param(wire, id=name) for name, wire in WIRES.items()])


def settled(services: Services, ask: Callable[[], Response], **verdict: Any) -> Response:
    """The answer to a request whose items get a verdict while it waits."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        assert wait_until(lambda: answer.done() or bool(chunks_pending(services)), timeout_s=10)
        settle_pending(services, **verdict)
        return answer.result()


def gateway_with(services: Services, **changed: object) -> TestClient:
    """A gateway on the same servers under other settings."""
    app = build_app(replace(services, settings=services.settings.model_copy(update=changed)), default_guard="fake")
    return TestClient(app, raise_server_exceptions=False)


@every_wire
def test_safe_passes_and_unsafe_is_blocked(api: TestClient, services: Services, key: Key, wire: Wire) -> None:
    safe = settled(services, lambda: wire.ask(api, key))
    unsafe = settled(services, lambda: wire.ask(api, key), **UNSAFE)

    assert (safe.status_code, wire.reads(safe)) == (200, "pass")
    assert (unsafe.status_code, wire.reads(unsafe)) == (200, "block")


@every_wire
@pytest.mark.parametrize("verdict", [DEAD, UNREAD])
def test_what_was_not_judged_never_passes(
    api: TestClient, services: Services, key: Key, wire: Wire, verdict: dict[str, Any]
) -> None:
    answer = settled(services, lambda: wire.ask(api, key), **verdict)

    assert wire.reads(answer) == ("review" if wire.three_way else "block")


@every_wire
def test_not_even_where_a_policy_lets_it_pass(api: TestClient, services: Services, key: Key, wire: Wire) -> None:
    lenient = {"dead": "pass", "unparseable": "pass", "thresholds": {"block": 0.9}}
    put_policy(services.engine, Policy.model_validate({"policy": "lenient", "version": 1, **lenient}, strict=False))
    set_tenant_policy(services.engine, key.tenant, "lenient")

    answer = settled(services, lambda: wire.ask(api, key), **DEAD)

    assert wire.reads(answer) == ("review" if wire.three_way else "block")


@every_wire
def test_what_is_judged_too_late_is_an_error_or_blocked_where_clients_let_errors_pass(
    services: Services, key: Key, wire: Wire
) -> None:
    with gateway_with(services, gateway_wait_s=0.1) as api:
        answer = wire.ask(api, key)

    if wire.error_may_pass:
        assert (answer.status_code, wire.reads(answer)) == (200, "block")
    else:
        assert answer.status_code == 503 or "Error" in answer.json()["Response"]
        assert "judged in time" in answer.text


@every_wire
def test_by_setting_what_was_not_judged_is_the_wires_error(services: Services, key: Key, wire: Wire) -> None:
    with gateway_with(services, unjudged="error") as api:
        answer = settled(services, lambda: wire.ask(api, key), **DEAD)

    if wire.error_may_pass:
        assert wire.reads(answer) == "block"
    else:
        assert answer.status_code == 502 or "Error" in answer.json()["Response"]


@every_wire
def test_no_key_or_a_wrong_one_is_refused(api: TestClient, services: Services, key: Key, wire: Wire) -> None:
    made, secret = create_key(services.engine, tenant=key.tenant, role=Role.VIEWER)
    stranger = wire.ask(api, Key("k0123456789", "lk_no"))
    viewer = wire.ask(api, Key(made.id, secret))

    assert stranger.status_code in {401, 404} or "AuthFailure.SecretIdNotFound" in stranger.text
    assert viewer.status_code == 403 or "AuthFailure.UnauthorizedOperation" in viewer.text
    assert not chunks_pending(services), "nothing was accepted"


@every_wire
@pytest.mark.parametrize("text", ["x" * 600_000, "a\x00b"])
def test_a_text_that_no_item_can_have_never_passes(services: Services, key: Key, wire: Wire, text: str) -> None:
    with gateway_with(services, gateway_body_bytes=10**7) as api:
        answer = wire.ask(api, key, text)

    if wire.error_may_pass:
        assert wire.reads(answer) == "block"
    else:
        assert 400 <= answer.status_code < 500 or "Error" in answer.json()["Response"]


@every_wire
def test_a_body_that_is_too_long_is_refused_in_the_wires_own_shape(api: TestClient, key: Key, wire: Wire) -> None:
    answer = wire.ask(api, key, "长" * 100_000)

    if wire.error_may_pass:
        assert (answer.status_code, wire.reads(answer)) == (200, "block")
    else:
        assert "longer than 65,536 bytes" in answer.text
        assert "urn:libra-fleet" not in answer.text


@pytest.mark.parametrize("case", [(0.1, "pass"), (0.5, "review"), (0.8, "block")])
@pytest.mark.parametrize("name", ["aliyun", "tencent"])
def test_a_policy_decides_between_three_answers_by_its_surface(
    api: TestClient, services: Services, key: Key, name: str, case: tuple[float, str]
) -> None:
    p_unsafe, expected = case
    surface = SurfaceRules(thresholds=Thresholds(review=0.4, block=0.7))
    surfaces = {"comment_detection": surface, "comments": surface}
    put_policy(services.engine, Policy(policy="forum", version=1, thresholds=Thresholds(), surfaces=surfaces))
    set_tenant_policy(services.engine, key.tenant, "forum")
    label = Label.UNSAFE if p_unsafe >= 0.5 else Label.SAFE

    answer = settled(services, lambda: WIRES[name].ask(api, key), label=label, p_unsafe=p_unsafe)

    assert WIRES[name].reads(answer) == expected


@every_wire
def test_controversial_is_review_where_there_are_three_answers_and_blocked_elsewhere(
    api: TestClient, services: Services, key: Key, wire: Wire
) -> None:
    answer = settled(services, lambda: wire.ask(api, key), **CONTROVERSIAL_ONE)
    assert wire.reads(answer) == ("review" if wire.three_way else "block")


@pytest.mark.parametrize(("name", "code"), [("aliyun", "SignatureDoesNotMatch"), ("tencent", "SignatureFailure")])
def test_a_signature_counts_with_its_own_keys_secret_and_while_the_key_does(
    api: TestClient, services: Services, key: Key, name: str, code: str
) -> None:
    other, _ = create_key(services.engine, tenant=key.tenant, role=Role.SERVICE)

    class Confused(Key):
        @property
        def signing_secret(self) -> str:
            return signing_secret(MASTER, other.id)

    assert code in WIRES[name].ask(api, Confused(*key)).text
    revoke_key(services.engine, key.id)
    assert "NotFound" in WIRES[name].ask(api, key).text


@pytest.mark.parametrize(("name", "code"), [("aliyun", "InvalidTimeStamp.Expired"), ("tencent", "SignatureExpire")])
@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_signature_of_another_time_is_refused(api: TestClient, key: Key, name: str, code: str, minutes: int) -> None:
    answer = WIRES[name].ask(api, key, at=datetime.now(UTC) + timedelta(minutes=minutes))
    assert code in answer.text


@pytest.mark.parametrize(("name", "code"), [("aliyun", "InvalidAction.NotFound"), ("tencent", "InvalidAction")])
def test_an_action_that_is_not_served_is_named(api: TestClient, key: Key, name: str, code: str) -> None:
    answer = WIRES[name].ask(api, key, action="ImageModeration")
    assert code in answer.text
    assert "ImageModeration" in answer.text


@pytest.mark.parametrize("name", ["aliyun", "tencent"])
def test_without_a_master_secret_signed_wires_are_off(services: Services, key: Key, name: str) -> None:
    with gateway_with(services, connector_secret=None) as api:
        assert "LIBRA_CONNECTOR_SECRET" in WIRES[name].ask(api, key).text


def test_a_post_to_the_root_that_nobody_signed_is_refused(api: TestClient) -> None:
    assert api.post("/", json={}).json()["Code"] == "SignatureDoesNotMatch"
    refused = api.post("/", headers={"X-TC-Action": "TextModeration"}, json={}).json()
    assert refused["Response"]["Error"]["Code"] == "AuthFailure.SignatureFailure"


def test_perspective_gives_back_what_its_clients_expect(api: TestClient, services: Services, key: Key) -> None:
    asked = {
        "requestedAttributes": {"TOXICITY": {}, "INSULT": {"scoreThreshold": 0.9}, "THREAT_EXPERIMENTAL": {}},
        "languages": ["zh"],
        "clientToken": "t",
        "doNotStore": True,
        "context": {"entries": [{"text": "x"}]},
    }
    body = settled(services, lambda: perspective(api, key, "a😀b", **asked)).json()

    assert set(body["attributeScores"]) == {"TOXICITY", "THREAT_EXPERIMENTAL"}, "INSULT is below its threshold"
    (span,) = body["attributeScores"]["TOXICITY"]["spanScores"]
    assert (span["begin"], span["end"]) == (0, 4)
    assert (body["languages"], body["clientToken"], body["libra"]["outcome"]) == (["zh"], "t", "scored")


def test_perspectives_errors_are_googles(api: TestClient, key: Key) -> None:
    refused = {
        "unknown attribute": perspective(api, key, requestedAttributes={"SPAM": {}}),
        "no attribute": perspective(api, key, requestedAttributes={}),
        "no text": perspective(api, key, " "),
        "no json": api.post("/v1alpha1/comments:analyze", params={"key": key.secret}, content="{"),
    }
    for what, answer in refused.items():
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT"), what
    assert "SPAM" in refused["unknown attribute"].json()["error"]["message"]


def test_litellms_answer_is_the_strictest_over_all_texts(api: TestClient, services: Services, key: Key) -> None:
    one_of_two = {"texts": ["fine", "", None, "bad"]}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(litellm, api, key, **one_of_two)
        assert wait_until(lambda: sum(row.size for row in chunks_pending(services)) == 2, timeout_s=10)
        settle_pending(services, **UNSAFE)
        blocked = answer.result().json()

    assert blocked["action"] == "BLOCKED"
    assert "bad" not in blocked["blocked_reason"]
    assert litellm(api, key, texts=["", " "]).json() == {"action": "NONE"}
    assert litellm(api, key, images=["https://a.example/x.png"]).json()["action"] == "BLOCKED"
    named = litellm(api, key, headers={"x-libra-guard": "nope"}).json()
    assert named["action"] == "BLOCKED"
    assert "nope" in named["blocked_reason"]


def test_litellms_end_users_do_not_choose_who_judges_them(api: TestClient, services: Services, key: Key) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(litellm, api, key, texts=["x"], additional_provider_specific_params={"guard": "nope"})
        assert wait_until(lambda: sum(row.size for row in chunks_pending(services)) == 1, timeout_s=10)
        settle_pending(services, **UNSAFE)
        assert "nope" not in answer.result().json()["blocked_reason"]


def test_litellms_tool_calls_are_judged(api: TestClient, services: Services, key: Key) -> None:
    calls = {
        "texts": [],
        "input_type": "response",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
    }
    assert settled(services, lambda: litellm(api, key, **calls), **UNSAFE).json()["action"] == "BLOCKED"


def test_difys_contract(api: TestClient, services: Services, key: Key) -> None:
    headers = {"Authorization": f"Bearer {key.secret}"}
    wanted = {"point": "app.moderation.input", "params": {"app_id": "a", "inputs": {"n": 1, "v": "x"}, "query": "q"}}
    file = {"transfer_method": "remote_url", "url": "https://a.example/x.png", "type": "image"}

    assert dify(api, key, point="ping").json() == {"result": "pong"}
    assert api.post("/connect/dify", headers=headers, content=b'{"point": "ping"}').json() == {"result": "pong"}
    passed = settled(services, lambda: api.post("/connect/dify", headers=headers, json=wanted)).json()
    assert (passed["flagged"], passed["action"]) == (False, "direct_output"), "Dify demands an action in every answer"
    mine = settled(
        services,
        lambda: api.post("/connect/dify", params={"preset_response": "不行"}, headers=headers, json=wanted),
        **UNSAFE,
    ).json()
    assert (mine["flagged"], mine["preset_response"]) == (True, "不行")
    wanted["params"]["inputs"] = {"photo": [file]}  # type: ignore[index]
    assert api.post("/connect/dify", headers=headers, json=wanted).json()["flagged"] is True
    assert api.post("/connect/dify", headers=headers, json={"point": "other"}).json()["flagged"] is True


def test_ogrs_verdict_says_what_was_found_and_what_was_not_judged(
    api: TestClient, services: Services, key: Key
) -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}]
    found = {**UNSAFE, "categories": ("S10:hate_abuse",)}
    unsafe = settled(services, lambda: ogr(api, key, payload={"messages": turns}), **found).json()
    unread = settled(services, lambda: ogr(api, key), **UNREAD).json()
    passed = settled(services, lambda: ogr(api, key, kind="step/response", payload={"text": "x"})).json()

    (finding,) = unsafe["findings"]
    assert (finding["category"], finding["severity"], finding["score"]) == ("x.libra.hate_abuse", "high", 0.97)
    assert finding["path"] == "payload.messages.0.content.0.text"
    assert unsafe["unjudged"] == ["payload.messages.0.content.1"]
    assert (unread["findings"], unread["unjudged"]) == ([], ["payload.messages.0.content"])
    assert (passed["decision"], passed["findings"], passed["unjudged"]) == ("allow", [], [])
    assert len({unsafe["event_id"], unread["event_id"], passed["event_id"]}) == 3


def test_ogrs_errors_are_its_own(api: TestClient, key: Key) -> None:
    headers = {"Authorization": f"Bearer {key.secret}"}
    assert api.post("/v1/evaluate", json={}).json()["error"] == "unauthorized"
    malformed = ogr(api, key, kind="step/other")
    assert (malformed.status_code, malformed.json()["error"]) == (400, "invalid_event")
    assert malformed.json()["details"][0]["field"] == "kind"
    assert api.post("/v1/evaluate", headers=headers, content="{").status_code == 400
    assert api.post("/v1/heartbeat", headers=headers, json={"agent_id": "a"}).json() == {"ok": True}
    assert api.get("/v1/health").json()["status"] == "error", "no worker serves the guard here"
    assert api.get("/v1/health").status_code == 503


def test_portkeys_context_is_read_by_its_side(api: TestClient, services: Services, key: Key) -> None:
    headers = {"Authorization": f"Bearer {key.secret}"}
    before = {"eventType": "beforeRequestHook", "request": {"json": {"messages": [{"role": "user", "content": "a"}]}}}
    after = {"eventType": "afterRequestHook", "request": before["request"], "response": {"json": {}, "text": "b"}}
    for context in (before, after):
        answer = settled(services, lambda c=context: api.post("/connect/webhook", headers=headers, json=c), **UNSAFE)
        assert answer.json()["verdict"] is False
        assert len(answer.json()["items"]) == 1
    for unknown in ({"eventType": "beforeRequestHook", "request": {}}, {"eventType": "x"}, {"messages": [{}]}, {}, []):
        answer = api.post("/connect/webhook", headers=headers, json=unknown)
        assert (answer.status_code, answer.json()["verdict"]) == (200, False), unknown


def test_a_caller_says_how_long_it_waits(api: TestClient, key: Key) -> None:
    headers = {"Authorization": f"Bearer {key.secret}"}
    late = api.post("/connect/webhook", params={"wait_s": "0.1"}, headers=headers, json={"text": "a"}).json()
    assert "judged in time" in late["reason"]
    late = api.post("/connect/webhook", headers={**headers, "Prefer": "wait=0"}, json={"text": "a"}).json()
    assert late["verdict"] is False


def test_what_a_wire_says_of_a_text_is_kept_with_its_item(api: TestClient, services: Services, key: Key) -> None:
    def last() -> Any:
        headers = {"Authorization": f"Bearer {key.secret}"}
        return api.get("/v1/verdicts", headers=headers).json()["data"][-1]

    settled(services, lambda: tencent(api, key))
    assert last()["metadata"] == {"surface": "comments", "data_id": "d1"}
    settled(services, lambda: perspective(api, key, communityId="c\x00" + "x" * 600))
    assert last()["metadata"]["community_id"] == "c" + "x" * 511
