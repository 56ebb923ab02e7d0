"""What every route that takes items does with them: let in, commit, once where asked, and wait where asked."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

from infra.errors import LibraError
from infra.ledger import submissions
from infra.ledger.settlement import verdict_of
from infra.ledger.submissions import AlreadyMadeError, IdempotencyKey, KeyInFlightError, KeyReusedError
from producer.gateway.access import Principal
from producer.gateway.api.requests import GuardSelection, ItemBatch, require_served
from producer.gateway.live_runs import Stream
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway
from producer.gateway.verdicts_awaited import ItemRef
from schemas.verdicts import Verdict


def hash_of(route: str, body: bytes) -> bytes:
    """What tells two requests under one idempotency key apart."""
    return hashlib.blake2b(route.encode() + b"\n" + body, digest_size=16).digest()


def key_problem(error: LibraError) -> ProblemError:
    """409: the key is taken."""
    if isinstance(error, KeyInFlightError):
        return ProblemError(409, "request-in-flight", str(error), field="Idempotency-Key", headers={"Retry-After": "1"})
    return ProblemError(409, "idempotency-key-reused", str(error), field="Idempotency-Key")


async def made_before(gateway: Gateway, once: IdempotencyKey | None) -> list[ItemRef] | None:
    """Places of the items that a repeated request made, or None where it is new.

    Raises:
        ProblemError: 409, the key stands for another request.
    """
    if once is None:
        return None
    try:
        made = await gateway.pool.run(submissions.find_made, gateway.services.engine, once)
    except KeyReusedError as error:
        raise key_problem(error) from error
    return places_of(made) if made else None


def places_of(made: dict[str, object]) -> list[ItemRef]:
    """What an idempotency key remembers of items."""
    seqs = made.get("seqs")
    return [ItemRef(str(made["run_id"]), int(seq)) for seq in seqs] if isinstance(seqs, list) else []


async def accept(
    gateway: Gateway, principal: Principal, guard: GuardSelection, item_batch: ItemBatch, once: IdempotencyKey | None
) -> list[ItemRef]:
    """Let items in and commit them; a repeated request gives the places of the first.

    Raises:
        ProblemError: 429, 503, 409.
    """
    places, _ = await _accept(gateway, principal, guard, item_batch, once, waits=False)
    return places


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
    places, futures = await _accept(gateway, principal, guard, item_batch, once, waits=True)
    if not futures:
        futures = [gateway.awaited.expect(place) for place in places]
        known = await gateway.pool.run(verdict_of, gateway.services.engine, places[0].run_id, [p.seq for p in places])
        gateway.awaited.deliver(places[0].run_id, known)
    try:
        verdicts = await asyncio.wait_for(asyncio.gather(*futures), wait_s)
    except TimeoutError:
        return places, None
    finally:
        gateway.awaited.forget(places, futures)
    gateway.metrics.verdict_wait_s.observe(time.monotonic() - started)
    return places, verdicts


async def _accept(
    gateway: Gateway,
    principal: Principal,
    guard: GuardSelection,
    item_batch: ItemBatch,
    once: IdempotencyKey | None,
    *,
    waits: bool,
) -> tuple[list[ItemRef], Sequence[asyncio.Future[Verdict]]]:
    known = await made_before(gateway, once)
    if known is not None:
        return known, []
    if guard.name != gateway.default_guard:
        await gateway.pool.run(require_served, guard.name, gateway)
    stream = Stream(principal.tenant, guard.name, guard.mode)
    if once is None:
        accepted = await gateway.intake.accept(stream, item_batch.items, item_batch.submissions, waits=waits)
        return accepted.places, accepted.verdicts
    try:
        return await gateway.intake.accept_once(stream, item_batch.items, item_batch.submissions, once), []
    except AlreadyMadeError as error:
        return places_of(error.made), []
    except (KeyReusedError, KeyInFlightError) as error:
        raise key_problem(error) from error
