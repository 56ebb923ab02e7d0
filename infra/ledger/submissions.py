"""What a caller said of an item beside its text, and requests that must count once however often they are sent.

Both are written in the transaction that accepts the items, so that an item has them from its first moment on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from infra.errors import LibraError
from infra.ledger import intake
from schemas.items import Item
from schemas.messages import JudgeChunk
from schemas.runs import RunSpec


class Submission(NamedTuple):
    """Whose item it is, the caller's own name for it, what is to be applied and whom to tell."""

    tenant: str
    custom_id: str | None = None
    policy: str | None = None
    callback_url: str | None = None
    metadata: dict[str, str] | None = None


class IdempotencyKey(NamedTuple):
    """An idempotency key with a hash of the request that it stands for."""

    tenant: str
    key: str
    request_hash: bytes


class AlreadyMadeError(LibraError):
    """A request with this idempotency key has been accepted; `made` is what came of it."""

    def __init__(self, made: dict[str, Any]) -> None:
        super().__init__("a request with this idempotency key has been accepted")
        self.made = made


class KeyReusedError(LibraError):
    """The idempotency key stands for another request."""


class KeyInFlightError(LibraError):
    """A request with this idempotency key is being accepted at this moment."""


_TRY_LOCK: Final = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:tenant || '/' || :key, 0))")
_FIND_KEY: Final = sa.text("SELECT request_hash, made FROM idempotency_keys WHERE tenant = :tenant AND key = :key")
_INSERT_KEY: Final = sa.text(
    "INSERT INTO idempotency_keys (tenant, key, request_hash, made) "
    "VALUES (:tenant, :key, :request_hash, CAST(:made AS jsonb))"
)


def accept_submitted(
    engine: sa.Engine,
    run_id: str,
    spec: RunSpec,
    groups: Sequence[Sequence[Item]],
    submissions: Mapping[str, Submission],
    *,
    once: IdempotencyKey | None = None,
) -> list[JudgeChunk]:
    """`intake.accept` for items with submissions, by item id; with `once`, not a second time.

    Raises:
        RunError: the run is not open.
        AlreadyMadeError: the key was used for the same request; nothing was written.
        KeyReusedError: the key was used for another request.
        KeyInFlightError: the key is being used at this moment.
    """
    ordered = [item for group in groups for item in group]

    def remember(connection: sa.Connection, first_seq: int) -> None:
        if once is not None:
            seq_of = {item.id: first_seq + offset for offset, item in enumerate(ordered)}
            made = {"run_id": run_id, "seqs": [seq_of[item_id] for item_id in submissions]}
            make_once(connection, once, made)

    submitted = _columns([submissions[item.id] for item in ordered])
    return intake.accept(engine, run_id, spec, groups, submitted=submitted, also=None if once is None else remember)


def _columns(submissions: Sequence[Submission]) -> dict[str, object]:
    return {
        "tenants": [said.tenant for said in submissions],
        "custom_ids": [said.custom_id for said in submissions],
        "policies": [said.policy for said in submissions],
        "callback_urls": [said.callback_url for said in submissions],
        "metadata": [
            None if said.metadata is None else json.dumps(said.metadata, ensure_ascii=False) for said in submissions
        ],
    }


def make_once(connection: sa.Connection, once: IdempotencyKey, made: dict[str, Any]) -> None:
    """Remember what a request makes, in the transaction that makes it.

    Raises:
        AlreadyMadeError, KeyReusedError, KeyInFlightError: let it roll the transaction back.
    """
    if not connection.scalar(_TRY_LOCK, {"tenant": once.tenant, "key": once.key}):
        raise KeyInFlightError("a request with this idempotency key is being accepted")
    _require_new(connection, once)
    connection.execute(_INSERT_KEY, {**once._asdict(), "made": json.dumps(made)})


def find_made(engine: sa.Engine, once: IdempotencyKey) -> dict[str, Any] | None:
    """What the request made when it was first sent, or None where it is new.

    Raises:
        KeyReusedError: the key stands for another request.
    """
    try:
        with engine.connect() as connection:
            _require_new(connection, once)
    except AlreadyMadeError as error:
        return error.made
    return None


def _require_new(connection: sa.Connection, once: IdempotencyKey) -> None:
    row = connection.execute(_FIND_KEY, {"tenant": once.tenant, "key": once.key}).one_or_none()
    if row is None:
        return
    if bytes(row.request_hash) != once.request_hash:
        raise KeyReusedError("this idempotency key stands for another request")
    raise AlreadyMadeError(row.made)


def forget_old_keys(engine: sa.Engine, *, older_than_s: float) -> int:
    """Drop idempotency keys of that age; returns how many."""
    statement = sa.text("DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(secs => :age_s)")
    with engine.begin() as connection:
        return connection.execute(statement, {"age_s": older_than_s}).rowcount


def pending_items(engine: sa.Engine, run_ids: Sequence[str]) -> dict[str, int]:
    """The number of items that have not settled, by run."""
    if not run_ids:
        return {}
    statement = sa.text(
        "SELECT id, accepted * repeat - settled AS pending FROM runs WHERE id = ANY(CAST(:ids AS text[]))"
    )
    # One statement needs no transaction of its own, and a ROLLBACK at its end would drop what the driver has prepared.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return {row.id: row.pending for row in connection.execute(statement, {"ids": list(run_ids)})}
