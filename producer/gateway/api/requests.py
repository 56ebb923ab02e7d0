"""From a caller's request (the shapes are in schemas/http.py) to items that are accepted and, where asked, judged."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

from fastapi import Header
from pydantic import ValidationError

from infra.guard_catalogue import GUARDS
from infra.guard_sheets import cannot_judge, kinds_of
from infra.ledger.intake import (
    AlreadyMadeError,
    IdempotencyKey,
    KeyInFlightError,
    KeyReusedError,
    Submission,
    find_made,
)
from producer.gateway.problems import BadFieldError, ProblemError
from producer.gateway.state import Gateway, Principal
from producer.intake.live import Accepted, live_spec
from producer.intake.verdict_waiter import ItemRef
from producer.webhooks.addresses import RefusedAddressError, check_form
from schemas.fleet import ready
from schemas.guards import Mode
from schemas.http import ItemRequest
from schemas.items import PLAIN_KINDS, Dialogue, Item, Kind
from schemas.verdicts import Verdict

_WAIT: Final = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,4})\"?\s*(?:[,;]|$)", re.I)
_ASYNC: Final = re.compile(r"(?:^|,)\s*respond-async\s*(?:[,;]|$)", re.I)
"""Preferences of RFC 7240."""
_OPENAI_NAMES: Final = ("omni-moderation-", "text-moderation-")
"""Programs written for OpenAI's endpoint name its models: they get the default guard, and the answer says so."""


class GuardSelection(NamedTuple):
    """A guard and how it is asked."""

    name: str
    mode: Mode


class ItemBatch(NamedTuple):
    """The items of a request in its order, their submissions by the item's id, and the guard to judge them.

    `places`: what the caller calls each item, where that is not items.0, items.1, …
    """

    tenant: str
    guard: GuardSelection
    items: list[Item]
    submissions: dict[str, Submission]
    places: Sequence[str] = ()


def item_batch_of(
    asked: Sequence[ItemRequest], guard: GuardSelection, principal: Principal, gateway: Gateway
) -> ItemBatch:
    """The items that a request means, or 422 on the first field that no item can have."""
    tenant = principal.tenant
    pairs = [submitted(one, tenant, gateway, where=f"items.{at}.") for at, one in enumerate(asked)]
    return ItemBatch(tenant, guard, [item for item, _ in pairs], {item.id: submission for item, submission in pairs})


def submitted(
    one: ItemRequest, tenant: str, gateway: Gateway, *, where: str, item_id: str | None = None
) -> tuple[Item, Submission]:
    """An item with its submission, or 422."""
    if one.policy is not None and not gateway.knows_policy(one.policy):
        raise BadFieldError(f"{where}policy", f"no policy named {one.policy!r}")
    if one.callback_url is not None:
        try:
            check_form(one.callback_url, gateway.webhooks_allowed)
        except RefusedAddressError:
            detail = "a webhook's URL must use https and lead to a public address"
            raise BadFieldError(f"{where}callback_url", detail) from None
    item = item_of(one.dialogue, fields=one.field_names, where=where, item_id=item_id)
    return item, Submission(tenant, one.custom_id, one.policy, one.callback_url, one.metadata)


def item_of(dialogue: Dialogue, *, fields: Mapping[str, str], where: str = "", item_id: str | None = None) -> Item:
    """A new item, or 422; `fields` and `where` say how the caller calls an item's fields."""
    try:
        return Item(id=item_id or uuid.uuid4().hex, **dialogue._asdict())
    except ValidationError as error:
        detail = error.errors(include_input=False, include_url=False)[0]
        name = str(detail["loc"][0]) if detail["loc"] else "response"
        raise BadFieldError(where + fields.get(name, name), detail["msg"].removeprefix("Value error, ")) from None


def guard_of(name: str | None, gateway: Gateway, *, field: str) -> GuardSelection:
    """The guard that a request means, or 422 where there is none of that name."""
    # Routers put the provider before the name, as in openai/omni-moderation-latest.
    if name is None or name.rpartition("/")[2].startswith(_OPENAI_NAMES) or name == gateway.default_guard:
        name = gateway.default_guard
    card = GUARDS.get(name)
    if card is None and name != gateway.default_guard:
        raise BadFieldError(field, f"no guard named {name[:100]!r}")
    if card is not None and not card.modes:
        raise BadFieldError(field, f"guard {name!r} cannot be run ({card.status.value})")
    return GuardSelection(name, card.modes[0] if card else Mode.SCORE)


def refuse_kinds(guard: GuardSelection, items: Sequence[Item], gateway: Gateway, places: Sequence[str] = ()) -> None:
    """400 on the first item of a kind that the guard cannot judge; else its worker would have to say so.

    `places` as in `ItemBatch`. Asks the broker about a guard that is in no list, so call it in a thread.
    """
    card = GUARDS.get(guard.name)
    # Every guard judges a text; a guard that is in no list is asked for no more than it is worth.
    plain = PLAIN_KINDS if card is None else {Kind.TEXT}
    if all(item.kind in plain for item in items):
        return
    kinds = (kinds_of(card) if card else None) or _announced_kinds(guard.name, gateway)
    for at, item in enumerate(items):
        if kinds and item.kind not in kinds:
            family = f"{guard.name} (of the family {card.family})" if card else guard.name
            place = places[at] if places else f"items.{at}"
            detail = f"{place}: {cannot_judge(family, item.kind, kinds)}"
            raise ProblemError(400, "kind-not-judged", detail, field=place)


def _announced_kinds(guard: str, gateway: Gateway) -> frozenset[Kind]:
    """The kinds that all workers of a guard judge; none where no worker says."""
    said = [process.kinds for process in gateway.announced() if process.guard == guard and process.kinds]
    known = [frozenset(Kind(name) for name in names if name in set(Kind)) for names in said]
    return frozenset.intersection(*known) if known else frozenset()


Prefer = Annotated[
    str | None,
    Header(
        description="RFC 7240: `wait=SECONDS`, how long to wait for the verdict; `respond-async`, not at all.",
        max_length=200,
    ),
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


def may_answer_later(prefer: str | None) -> bool:
    """Whether the caller asked for it: `wait=SECONDS` or `respond-async`. Other preferences do not count."""
    return prefer is not None and bool(_WAIT.search(prefer) or _ASYNC.search(prefer))


def wait_s_of(prefer: str | None, gateway: Gateway) -> float:
    """Seconds to wait for verdicts: the caller's preference, at most what the settings allow."""
    longest = gateway.settings.gateway_wait_s
    asked = _WAIT.search(prefer or "")
    if asked:
        return min(float(asked[1]), longest)
    return 0 if _ASYNC.search(prefer or "") else longest


def once_of(key: str | None, principal: Principal, route: str, body: bytes) -> IdempotencyKey | None:
    """The request's idempotency key, where it has one, with a hash that distinguishes two requests under it."""
    if key is None:
        return None
    request_hash = hashlib.blake2b(route.encode() + b"\n" + body, digest_size=16).digest()
    return IdempotencyKey(principal.tenant, key, request_hash)


def key_problem(error: KeyInFlightError | KeyReusedError) -> ProblemError:
    """409: the key is taken."""
    if isinstance(error, KeyInFlightError):
        return ProblemError(409, "request-in-flight", str(error), field="Idempotency-Key", headers={"Retry-After": "1"})
    return ProblemError(409, "idempotency-key-reused", str(error), field="Idempotency-Key")


async def accept(
    gateway: Gateway, item_batch: ItemBatch, once: IdempotencyKey | None, *, waits: bool = False
) -> Accepted:
    """Admit items and commit them, or 429, 503, 409; a repeated request gives the places of the first."""
    tenant, guard, items, submissions, places = item_batch
    spec = live_spec(tenant, guard.name, guard.mode, form=gateway.settings.text_form)
    try:
        made = await gateway.ask(find_made, once) if once else None
        if made is not None:
            return _accepted_before(made)
        # Items for a guard without a worker would wait for ever; the default guard's worker may come later.
        if guard.name != gateway.default_guard and not ready(
            await asyncio.to_thread(gateway.announced), "worker", guard.name
        ):
            detail = f"no worker serves {guard.name} now"
            raise ProblemError(503, "guard-not-served", detail, headers={"Retry-After": "30"})
        await asyncio.to_thread(refuse_kinds, guard, items, gateway, places)
        if once is None:
            return await asyncio.wrap_future(gateway.intake.accept(spec, items, submissions, waits=waits))
        return await asyncio.wrap_future(gateway.intake.accept_alone(spec, items, submissions, once=once))
    except AlreadyMadeError as error:
        return _accepted_before(error.made)
    except (KeyReusedError, KeyInFlightError) as error:
        raise key_problem(error) from error


def _accepted_before(made: dict[str, Any]) -> Accepted:
    """The places that an idempotency key remembers."""
    return Accepted([ItemRef(str(made["run_id"]), int(seq)) for seq in made.get("seqs", ())], None)


async def accept_and_wait(
    gateway: Gateway, item_batch: ItemBatch, once: IdempotencyKey | None, *, wait_s: float
) -> tuple[list[ItemRef], list[Verdict] | None]:
    """As `accept`, and the items' verdicts; None where not all have come in time (they will)."""
    started = time.monotonic()
    refs, pending = await accept(gateway, item_batch, once, waits=True)
    waiter = gateway.intake.verdicts
    if pending is None:  # committed alone or earlier: the verdicts may be there already
        pending = await asyncio.to_thread(waiter.expect_settled, refs)
    try:
        verdicts = await asyncio.wait_for(asyncio.wrap_future(pending.result), wait_s)
    except TimeoutError:
        return refs, None
    finally:
        waiter.forget(pending)
    gateway.metrics.verdict_wait_s.observe(time.monotonic() - started)
    return refs, verdicts
