"""The clouds' one address: `POST /`, Aliyun's or Tencent's by its headers; checks who signed, then hands on.

A signed request does not show its secret, so the secret must be known here: it is derived from LIBRA_CONNECTOR_SECRET
and the API key's id (decision 0055).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from fastapi import APIRouter, Request, Response

from infra.ledger.keys import signing_secret
from producer.gateway.connectors import aliyun, tencent
from producer.gateway.connectors.adapter import Caller, speaking
from producer.gateway.connectors.signatures import ACS3, TC3, SignedRequest, claim_of, is_signed_with, signed_at
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway, Here
from schemas.access import Scope

_VALID_FOR: Final = {ACS3: timedelta(minutes=15), TC3: timedelta(minutes=5)}
"""How far a request's time may be from ours: what each cloud allows."""
_KEY_ID: Final = re.compile(r"k[0-9a-f]{10}")


def _is_tencents(request: Request) -> bool:
    return "x-tc-action" in request.headers


def _in_shape(problem: ProblemError, request: Request) -> Response:
    return tencent.error(problem) if _is_tencents(request) else aliyun.error(problem)


router = APIRouter(tags=["connectors"], route_class=speaking(_in_shape), include_in_schema=False)


@router.post("/")
async def moderate(request: Request, gateway: Here) -> Response:
    """Judge a text for a client of one of the clouds."""
    if _is_tencents(request):
        caller = await _signer(gateway, request, TC3)
        _require_action(request.headers["x-tc-action"], tencent.ACTION)
        return await tencent.answer(caller, request)
    caller = await _signer(gateway, request, ACS3)
    _require_action(request.headers.get("x-acs-action", ""), aliyun.ACTION)
    return await aliyun.answer(caller, request)


def _require_action(given: str, served: str) -> None:
    if given != served:
        raise ProblemError(404, "unknown-action", f"{given[:60]!r} is not served here; {served} is")


async def _signer(gateway: Gateway, request: Request, scheme: str) -> Caller:
    """The caller whose secret signed this request; 401 or 403."""
    master = gateway.settings.connector_secret
    if master is None:
        raise ProblemError(403, "forbidden", "signed wires are off: LIBRA_CONNECTOR_SECRET is not set")
    claim = claim_of(request.headers.get("authorization", ""), scheme)
    if claim is None:
        raise ProblemError(401, "bad-signature", f"no {scheme} signature that covers host and action")
    principal = await gateway.principal_of_key(claim.key_id) if _KEY_ID.fullmatch(claim.key_id) else None
    if principal is None:
        raise ProblemError(401, "unauthorized", "unknown or revoked key id")
    sent = SignedRequest(request.method, request.url.path, request.url.query, request.headers, await request.body())
    if not is_signed_with(signing_secret(master.get_secret_value(), claim.key_id), claim, sent):
        raise ProblemError(401, "bad-signature", "the signature does not match; is it this key id's signing secret?")
    at = signed_at(sent, scheme)
    if at is None or abs(datetime.now(UTC) - at) > _VALID_FOR[scheme]:
        raise ProblemError(401, "expired-signature", "the request's time is too far from the gateway's")
    if not principal.may(Scope.MODERATE):
        raise ProblemError(403, "forbidden", f"a key of role {principal.role} may not {Scope.MODERATE}")
    return Caller(gateway, principal, gateway.settings.gateway_wait_s)
