"""Signed requests of two clouds: who claims to have signed, and whether it was with the right secret.

ACS3-HMAC-SHA256 is Aliyun's "V3 request body and signature mechanism", TC3-HMAC-SHA256 Tencent's "signature method v3".
Both hash a canonical form of the request. Knows no framework, key or ledger.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote

ACS3: Final = "ACS3-HMAC-SHA256"
TC3: Final = "TC3-HMAC-SHA256"

_PART: Final = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)")
_COVERED: Final = {
    ACS3: frozenset({"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date"}),
    TC3: frozenset({"host", "content-type"}),
}
"""What a signature must cover at least, or it would hold for other requests as well."""


class SignedRequest(NamedTuple):
    """The parts of a request that a signature may cover. Names of headers are in lower case, `query` as it was sent."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class Claim(NamedTuple):
    """An Authorization header: the key's id, what the key is derived by (TC3: date and service), what is covered."""

    scheme: str
    key_id: str
    scope: tuple[str, ...]
    signed_headers: tuple[str, ...]
    signature: str


def claim_of(authorization: str, scheme: str) -> Claim | None:
    """The claim in an Authorization header; None where it is none of this scheme, or covers too little."""
    given, _, rest = authorization.partition(" ")
    parts = dict(_PART.findall(rest))
    if given != scheme or len(parts) != len(("Credential", "SignedHeaders", "Signature")):
        return None
    key_id, *scope = parts["Credential"].split("/")
    names = tuple(parts["SignedHeaders"].lower().split(";"))
    return Claim(scheme, key_id, tuple(scope), names, parts["Signature"]) if _COVERED[scheme] <= set(names) else None


def signed_at(request: SignedRequest, scheme: str) -> datetime | None:
    """When the request says that it was signed, or None where it says no time."""
    try:
        if scheme == ACS3:
            return datetime.strptime(request.headers.get("x-acs-date", ""), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return datetime.fromtimestamp(int(request.headers.get("x-tc-timestamp", "")), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def is_signed_with(secret: str, claim: Claim, request: SignedRequest) -> bool:
    """Whether the request, its body included, was signed with this secret."""
    expected = _acs3(secret, claim, request) if claim.scheme == ACS3 else _tc3(secret, claim, request)
    return expected is not None and hmac.compare_digest(expected.encode(), claim.signature.encode())


def _acs3(secret: str, claim: Claim, request: SignedRequest) -> str | None:
    body_hash = hashlib.sha256(request.body).hexdigest()
    if not hmac.compare_digest(request.headers.get("x-acs-content-sha256", "").encode(), body_hash.encode()):
        return None
    pairs = sorted(parse_qsl(request.query, keep_blank_values=True))
    query = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)
    text = f"{ACS3}\n{_hash_of_canonical(claim, request, query, body_hash)}"
    return hmac.digest(secret.encode(), text.encode(), "sha256").hex()


def _tc3(secret: str, claim: Claim, request: SignedRequest) -> str | None:
    at = signed_at(request, TC3)
    if at is None or claim.scope[:1] != (f"{at:%Y-%m-%d}",):
        return None
    body_hash = hashlib.sha256(request.body).hexdigest()
    lower = {name: value.lower() for name, value in request.headers.items()}  # Tencent: keys and values in lower case
    canonical = _hash_of_canonical(claim, request._replace(headers=lower), request.query, body_hash)
    text = "\n".join((TC3, request.headers["x-tc-timestamp"], "/".join(claim.scope), canonical))
    key = f"TC3{secret}".encode()
    for part in claim.scope:  # date, service, "tc3_request"
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _hash_of_canonical(claim: Claim, request: SignedRequest, query: str, body_hash: str) -> str:
    """SHA-256 of the canonical request, whose form both clouds share."""
    headers = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in claim.signed_headers)
    names = ";".join(claim.signed_headers)
    canonical = "\n".join((request.method, request.path, query, headers, names, body_hash))
    return hashlib.sha256(canonical.encode()).hexdigest()
