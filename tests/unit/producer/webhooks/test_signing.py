"""Signatures that the convention's own library accepts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from infra.ledger.webhooks import new_secret
from producer.webhooks.sender import signed_headers

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
