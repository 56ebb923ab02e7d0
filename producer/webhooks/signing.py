"""Signatures of the Standard Webhooks convention. Pure.

Source: https://github.com/standard-webhooks/standard-webhooks (specification, "Signature scheme", symmetric).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

_PREFIX: Final = "whsec_"


def signed_headers(message_id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers of a message; `timestamp` is the attempt's, in epoch seconds. One signature per secret.

    Raises:
        ValueError: a secret is not `whsec_` and base64.
    """
    signatures = " ".join(_signature(secret, message_id, timestamp, body) for secret in secrets)
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}


def _signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key or not secret.startswith(_PREFIX):
        raise ValueError("a signing secret is whsec_ and base64")
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
