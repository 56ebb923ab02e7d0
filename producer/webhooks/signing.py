"""How a message proves that it is ours: two conventions, told apart by the form of the endpoint's secret.

- `whsec_…`: Standard Webhooks, JSON with three headers (https://github.com/standard-webhooks/standard-webhooks).
- `seed_…`: the callback of the clouds in China, a form of `content` and `checksum` = SHA-256(uid + seed + content) in
  hex, as Aliyun's "callback notification" has it. Here the uid is the endpoint's id. `content` says `suggestion`: pass,
  review or block.

Knows neither the ledger nor how a message is sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlencode

from infra.errors import UsageError
from infra.ledger.webhooks import SEED, STANDARD
from schemas.items import Label
from schemas.policy import Action
from schemas.verdicts import Outcome
from schemas.webhooks import Envelope, JudgedItem

try:
    from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook
except ImportError as missing:
    raise UsageError("signing webhooks needs standardwebhooks: pip install 'libra-fleet[webhooks]'") from missing


class Signed(NamedTuple):
    """A message's body as it is sent, and the headers that go with it."""

    body: bytes
    headers: dict[str, str]


def signed(message_id: str, sent_at: datetime, body: str, secrets: Sequence[str], *, uid: str) -> Signed:
    """A message for an attempt at this time, by the convention of its secrets, of which the newest comes first.

    Raises:
        ValueError: a secret has neither form.
    """
    if secrets[0].startswith(SEED):
        content = with_suggestion(body)
        form = {"content": content, "checksum": checksum(uid, secrets[0], content)}
        return Signed(urlencode(form).encode(), {"content-type": "application/x-www-form-urlencoded"})
    headers = signed_headers(message_id, sent_at, body, secrets)
    return Signed(body.encode(), {**headers, "content-type": "application/json"})


def signed_headers(message_id: str, sent_at: datetime, body: str, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers of the Standard Webhooks convention, for an attempt at this time. One signature per secret."""
    if not all(secret.startswith(STANDARD) for secret in secrets):
        raise ValueError("a signing secret is whsec_ and base64")
    try:
        signatures = " ".join(Webhook(secret).sign(message_id, sent_at, body) for secret in secrets)
    except EmptyWebhookSecretError as error:
        raise ValueError("a signing secret is whsec_ and base64") from error
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": signatures,
    }


def checksum(uid: str, seed: str, content: str) -> str:
    """SHA-256 over uid, seed and content, in hex."""
    return hashlib.sha256(f"{uid}{seed}{content}".encode()).hexdigest()


def with_suggestion(body: str) -> str:
    """A message's body with `suggestion` before it: the action, or what the verdict alone suggests."""
    envelope = Envelope.model_validate_json(body)
    return json.dumps({"suggestion": _suggestion(envelope).value, **json.loads(body)}, ensure_ascii=False)


def _suggestion(envelope: Envelope) -> Action:
    data = envelope.data
    was_judged = not isinstance(data, JudgedItem) or data.outcome is Outcome.SCORED
    by_label = Action.PASS if data.label is Label.SAFE else Action.BLOCK
    action = data.action or (by_label if was_judged else Action.REVIEW)
    return action if was_judged or action is not Action.PASS else Action.REVIEW
