"""From what callers send (the shapes are in schemas/http.py) to items, guards, times to wait."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NamedTuple

from fastapi import Header
from pydantic import ValidationError

from infra.guard_catalogue import GUARDS
from infra.ledger.intake import IdempotencyKey, Submission
from producer.gateway.access import Principal
from producer.gateway.problems import BadFieldError, ProblemError
from producer.gateway.state import Gateway
from producer.webhooks.addresses import RefusedAddressError, check_form
from schemas.guards import Mode
from schemas.http import ItemRequest
from schemas.items import Item

_WAIT: Final = re.compile(r"\bwait=(\d{1,4})\b")
_OPENAI_NAMES: Final = ("omni-moderation-", "text-moderation-")
"""Programs written for OpenAI's endpoint name its models: they get the default guard, and the answer says so."""


class ItemBatch(NamedTuple):
    """Items of a request in its order, with what was said of each, by the item's id."""

    items: list[Item]
    submissions: dict[str, Submission]


def item_batch_of(asked: Sequence[ItemRequest], principal: Principal, gateway: Gateway) -> ItemBatch:
    """The items that a request means.

    Raises:
        ProblemError: 422 on the first field that no item can have.
    """
    item_batch = ItemBatch([], {})
    for at, one in enumerate(asked):
        where = f"items.{at}."
        require_known(one, gateway, where=where)
        item = item_of(one.main, one.question, fields={"response": one.main_field}, where=where)
        item_batch.items.append(item)
        item_batch.submissions[item.id] = Submission(
            principal.tenant, one.custom_id, one.policy, one.callback_url, one.metadata
        )
    return item_batch


def require_known(one: ItemRequest, gateway: Gateway, *, where: str) -> None:
    """See that an item's policy is known, and that its webhook's address is not one that no sender would call.

    Raises:
        ProblemError: 422, it is not.
    """
    if one.policy is not None and not gateway.knows_policy(one.policy):
        raise BadFieldError(f"{where}policy", f"no policy named {one.policy!r}")
    if one.callback_url is not None:
        try:
            check_form(one.callback_url, gateway.webhooks_allowed)
        except RefusedAddressError:
            raise BadFieldError(f"{where}callback_url", "webhooks go by https, and to public addresses only") from None


def item_of(
    response: str, question: str = "", *, fields: Mapping[str, str], where: str = "", item_id: str | None = None
) -> Item:
    """A new item.

    Raises:
        ProblemError: 422; `fields` and `where` say how the caller calls an item's fields.
    """
    try:
        return Item(id=item_id or uuid.uuid4().hex, question=question, response=response)
    except ValidationError as error:
        detail = error.errors(include_input=False, include_url=False)[0]
        name = str(detail["loc"][0]) if detail["loc"] else "response"
        raise BadFieldError(where + fields.get(name, name), detail["msg"].removeprefix("Value error, ")) from None


class GuardSelection(NamedTuple):
    """A guard and how it is asked."""

    name: str
    mode: Mode


def guard_of(name: str | None, gateway: Gateway, *, field: str) -> GuardSelection:
    """The guard that a request means.

    Raises:
        ProblemError: 422 where there is none of that name.
    """
    if name is None or name.startswith(_OPENAI_NAMES) or name == gateway.default_guard:
        name = gateway.default_guard
    card = GUARDS.get(name)
    if card is None and name != gateway.default_guard:
        raise BadFieldError(field, f"no guard named {name[:100]!r}")
    if card is not None and not card.modes:
        raise BadFieldError(field, f"guard {name!r} cannot be run ({card.status.value})")
    return GuardSelection(name, card.modes[0] if card else Mode.SCORE)


def require_served(guard: str, gateway: Gateway) -> None:
    """Refuse a guard without a worker: its items would wait for ever. In a thread.

    Raises:
        ProblemError: 503, none has announced itself.
    """
    if not gateway.serves(guard):
        raise ProblemError(503, "guard-not-served", f"no worker serves {guard} now", headers={"Retry-After": "30"})


Prefer = Annotated[
    str | None, Header(description="`wait=SECONDS` (RFC 7240): how long to wait for the verdict.", max_length=200)
]
IdempotencyHeader = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Sent again with the same body, the request counts once and has the same answer.",
    ),
]


def wait_s_of(prefer: str | None, gateway: Gateway) -> float:
    """Seconds to wait for verdicts: the caller's preference, at most what the settings allow."""
    asked = _WAIT.search(prefer or "")
    longest = gateway.settings.gateway_wait_s
    return min(float(asked[1]), longest) if asked else longest


def once_of(key: str | None, principal: Principal, request_hash: bytes) -> IdempotencyKey | None:
    """The request's idempotency key, where it has one."""
    return None if key is None else IdempotencyKey(principal.tenant, key, request_hash)
