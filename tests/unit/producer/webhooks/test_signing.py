"""Signatures that the convention's own library accepts."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from infra.ledger.webhooks import SEED, new_secret
from producer.webhooks.signing import checksum, signed, signed_headers

OLD, NEW = new_secret(), new_secret()


def now() -> datetime:
    """Asked in the test: the library refuses what is older than five minutes, and a suite may run longer."""
    return datetime.now(UTC)


def test_the_signature_is_that_of_the_published_example() -> None:
    # The worked example of Standard Webhooks, as Svix' documentation prints it.
    at = datetime.fromtimestamp(1_614_265_330, UTC)

    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", at, '{"test": 2432232314}', ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
    )

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.dictionaries(st.text(), st.text()))
def test_the_conventions_library_verifies_with_each_of_several_secrets(content: dict[str, str]) -> None:
    import json

    body = json.dumps(content)
    headers = signed_headers("msg_1", now(), body, [NEW, OLD])

    assert [Webhook(secret).verify(body, headers) for secret in (NEW, OLD)] == [content, content]


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp", "secret"])
def test_whatever_is_altered_the_signature_does_not_fit(change: str) -> None:
    at = now()
    headers = signed_headers("msg_1", at, "{}", [NEW])
    headers |= (
        {change: str(int(at.timestamp()) - 1) if change == "webhook-timestamp" else "msg_2"} if "-" in change else {}
    )

    with pytest.raises(WebhookVerificationError):
        Webhook(OLD if change == "secret" else NEW).verify("[]" if change == "body" else "{}", headers)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!", "abcd"])
def test_what_is_no_secret_signs_nothing(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        signed_headers("msg_1", now(), "{}", [secret])


@pytest.mark.parametrize(
    ("data", "suggestion"),
    [
        ({"action": "review"}, "review"),
        ({"action": None}, "block"),
        ({"action": None, "label": "safe"}, "pass"),
        ({"action": None, "label": None, "outcome": "dead"}, "review"),
        ({"action": "pass", "label": None, "outcome": "unparseable"}, "review"),
        ({"action": "block", "label": None, "outcome": "dead"}, "block"),
    ],
)
def test_a_seed_makes_a_form_with_a_checksum_and_a_suggestion_that_never_passes_what_was_not_judged(
    data: dict[str, object], suggestion: str
) -> None:
    item = {"run_id": "r", "seq": 1, "id": "i", "outcome": "scored", "label": "unsafe", "p_unsafe": None}
    body = json.dumps(
        {
            "type": "item.judged",
            "timestamp": "2026-11-24T18:00:00Z",
            "data": {**item, "custom_id": "帖子 1", "categories": [], "fingerprint": None, **data},
        }
    )
    newest = new_secret(SEED)

    message = signed("msg_1", now(), body, [newest, new_secret(SEED)], uid="we_1")

    form = dict(parse_qsl(message.body.decode()))
    content = json.loads(form["content"])
    assert message.headers == {"content-type": "application/x-www-form-urlencoded"}
    assert form["checksum"] == hashlib.sha256(f"we_1{newest}{form['content']}".encode()).hexdigest()
    assert form["checksum"] != checksum("we_2", newest, form["content"])
    assert (content["suggestion"], content["data"]["custom_id"]) == (suggestion, "帖子 1")
