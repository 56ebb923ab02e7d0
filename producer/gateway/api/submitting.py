"""For every route that takes items: let in, commit, once where asked, and wait for verdicts where asked."""

from __future__ import annotations

import asyncio
import hashlib
import time

from infra.errors import LibraError
from infra.ledger.intake import AlreadyMadeError, IdempotencyKey, KeyInFlightError, KeyReusedError, find_made
from producer.gateway.access import Principal
from producer.gateway.api.requests import GuardSelection, ItemBatch, require_served
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway
from producer.intake.live import Accepted, live_spec
from producer.intake.verdict_waiter import ItemRef
from schemas.verdicts import Verdict


def hash_of(route: str, body: bytes) -> bytes:
    """A hash that tells two requests under one idempotency key apart."""
    return hashlib.blake2b(route.encode() + b"\n" + body, digest_size=16).digest()


def key_problem(error: LibraError) -> ProblemError:
    """409: the key is taken."""
    if isinstance(error, KeyInFlightError):
        return ProblemError(409, "request-in-flight", str(error), field="Idempotency-Key", headers={"Retry-After": "1"})
    return ProblemError(409, "idempotency-key-reused", str(error), field="Idempotency-Key")


async def accept(
    gateway: Gateway, principal: Principal, guard: GuardSelection, item_batch: ItemBatch, once: IdempotencyKey | None
) -> list[ItemRef]:
    """Let items in and commit them; a repeated request gives the places of the first.

    Raises:
        ProblemError: 429, 503, 409.
    """
    return (await _accept(gateway, principal, guard, item_batch, once, waits=False)).refs


async def accept_and_wait(
    gateway: Gateway,
    principal: Principal,
    guard: GuardSelection,
    item_batch: ItemBatch,
    once: IdempotencyKey | None,
    *,
    wait_s: float,
) -> tuple[list[ItemRef], list[Verdict] | None]:
    """As `accept`, and the items' verdicts; None where not all have come in time (they will).

    Raises:
        ProblemError: 429, 503, 409.
    """
    started = time.monotonic()
    refs, pending = await _accept(gateway, principal, guard, item_batch, once, waits=True)
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


async def _accept(
    gateway: Gateway,
    principal: Principal,
    guard: GuardSelection,
    item_batch: ItemBatch,
    once: IdempotencyKey | None,
    *,
    waits: bool,
) -> Accepted:
    items, said = item_batch
    spec = live_spec(principal.tenant, guard.name, guard.mode)
    try:
        if once is not None:
            made = await asyncio.to_thread(find_made, gateway.services.engine, once)
            if made is not None:
                return Accepted(_refs_of(made), None)
        if guard.name != gateway.default_guard:
            await asyncio.to_thread(require_served, guard.name, gateway)
        if once is None:
            return await asyncio.wrap_future(gateway.intake.accept(spec, items, said, waits=waits))
        return await asyncio.wrap_future(gateway.intake.accept_alone(spec, items, said, once=once))
    except AlreadyMadeError as error:
        return Accepted(_refs_of(error.made), None)
    except (KeyReusedError, KeyInFlightError) as error:
        raise key_problem(error) from error


def _refs_of(made: dict[str, object]) -> list[ItemRef]:
    """The places that an idempotency key remembers."""
    seqs = made.get("seqs")
    return [ItemRef(str(made["run_id"]), int(seq)) for seq in seqs] if isinstance(seqs, list) else []
