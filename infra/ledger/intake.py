"""The producer's half of the ledger: open a run, accept items, seal it. Nothing here judges or settles.

What a caller said of an item besides its text, and the requests that count once however often they are sent, are
written in the transaction that accepts the items.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from infra.errors import DataError, LibraError, RunError, TakenError
from infra.ledger.engine import Row, execute, fetch_all, fetch_one, fetch_value
from infra.ledger.months import Month
from infra.ledger.tables import idempotency_keys, runs
from infra.ledger.text import clean_json
from schemas.guards import Mode, TextForm
from schemas.items import Item, Turn
from schemas.messages import ChunkItem, JudgeChunk
from schemas.runs import InvalidRow, RunSpec, RunState

_INVALID_ROWS_KEPT: Final = 1_000

# One statement, so that the run's row is locked for as short as can be: live items of one tenant all pass here. The
# row's counters give the numbers of the new items and chunks; the arrays are aligned by position, and WITH ORDINALITY
# keeps their order.
_ACCEPTING: Final = """
    WITH run AS (
        UPDATE runs SET accepted = accepted + :item_count, chunks = chunks + :chunk_count
        WHERE id = :run_id AND state = 'open'
        RETURNING accepted - :item_count AS first_seq, chunks - :chunk_count AS first_chunk,
                  extract(epoch FROM now())::float8 AS enqueued_at, fingerprint
    ), new_items AS (
        INSERT INTO items (run_id, seq, item_id, question, response, truth, source, category, subcategory, content_hash,
                           kind, history)
        SELECT :run_id, run.first_seq + i.row - 1, item_id, question, response, truth, source, category, subcategory,
               hash, kind, CAST(history AS jsonb)
        FROM run, unnest(CAST(:ids AS text[]), CAST(:questions AS text[]), CAST(:responses AS text[]),
                         CAST(:truths AS text[]), CAST(:sources AS text[]), CAST(:categories AS text[]),
                         CAST(:subcategories AS text[]), CAST(:hashes AS bytea[]), CAST(:kinds AS text[]),
                         CAST(:histories AS text[]))
             WITH ORDINALITY AS i(item_id, question, response, truth, source, category, subcategory, hash, kind,
                                  history, row)
    ), new_chunks AS (
        INSERT INTO chunks (run_id, chunk_no, iteration, first_seq, size, nonce)
        SELECT :run_id, run.first_chunk + c.row - 1, iteration, run.first_seq + start, size, nonce
        FROM run, unnest(CAST(:iterations AS int[]), CAST(:starts AS bigint[]), CAST(:sizes AS int[]),
                         CAST(:nonces AS text[]))
             WITH ORDINALITY AS c(iteration, start, size, nonce, row)
        RETURNING chunk_no, ordinal
    )
"""
_SUBMITTING: Final = """
    , new_submissions AS (
        INSERT INTO submissions (run_id, seq, tenant, custom_id, policy, callback_url, metadata)
        SELECT :run_id, run.first_seq + s.row - 1, tenant, custom_id, policy, callback_url, CAST(metadata AS jsonb)
        FROM run, unnest(CAST(:tenants AS text[]), CAST(:custom_ids AS text[]), CAST(:policies AS text[]),
                         CAST(:callback_urls AS text[]), CAST(:metadata AS text[]))
             WITH ORDINALITY AS s(tenant, custom_id, policy, callback_url, metadata, row)
    )
"""
_PLACE: Final = """
    SELECT first_seq, first_chunk, enqueued_at, fingerprint,
           (SELECT array_agg(ordinal ORDER BY chunk_no) FROM new_chunks) AS ordinals
    FROM run
"""
_ACCEPT: Final = sa.text(_ACCEPTING + _PLACE)
_ACCEPT_SUBMITTED: Final = sa.text(_ACCEPTING + _SUBMITTING + _PLACE)

_SEAL: Final = sa.text(
    """
    UPDATE runs SET state = 'sealed', expected = accepted * repeat, sealed_at = now(),
                    settled_at = CASE WHEN settled = accepted * repeat THEN now() END,
                    invalid_count = :invalid_count, invalid_rows = CAST(:invalid_rows AS jsonb)
    WHERE id = :run_id AND state = 'open'
    RETURNING settled = expected
    """
)


LIVE_DAY: Final = "runs.lane = 'live' AND runs.name LIKE 'live-%' AND runs.spec ->> 'source' LIKE 'live:%'"
"""SQL over a row of `runs`: a day's run of live traffic, as `todays_run` opens it."""
DAY_END: Final = "date_trunc('day', runs.created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '1 day'"
_GRACE: Final = timedelta(hours=6)
"""A day's run stays open so long after its day, for a gateway that has not asked for the next one yet."""
_PAST_DAYS: Final = sa.text(
    f"SELECT id FROM runs WHERE {LIVE_DAY} AND state = 'open' AND {DAY_END} < now() - :grace ORDER BY id"  # noqa: S608
)


def new_run_id() -> str:
    """An id that no run has; it begins with the month."""
    return Month.now().prefix + secrets.token_hex(5)


def create_run(engine: sa.Engine, spec: RunSpec, *, run_id: str | None = None, name: str | None = None) -> str:
    """Open a run and return its id.

    Raises:
        TakenError: the name is taken.
    """
    run_id = run_id or new_run_id()
    if not open_run(engine, run_id, name or run_id, spec):
        raise TakenError(f"there is a run named {name!r} already")
    return run_id


def open_run(engine: sa.Engine, run_id: str, name: str, spec: RunSpec) -> bool:
    """Open a run; False where there is one of this id or name, which is left as it is."""
    statement = insert(runs).values(
        id=run_id,
        name=name,
        state=RunState.OPEN.value,
        guard=spec.guard,
        lane=spec.lane.value,
        repeat=spec.repeat,
        spec=spec.model_dump(mode="json"),
    )
    return execute(engine, statement.on_conflict_do_nothing()) == 1


def accept(
    engine: sa.Engine,
    run_id: str,
    spec: RunSpec,
    groups: Sequence[Sequence[Item]],
    *,
    submitted: Mapping[str, object] | None = None,
    also: Callable[[sa.Connection, int], None] | None = None,
) -> list[JudgeChunk]:
    """Commit items, one group per chunk, and return the chunks to enqueue, once per iteration.

    `submitted` holds the columns of the items' submissions, in the order of the groups. `also` is called in the same
    transaction with the first item's number; the others follow in the order of the groups.

    Raises:
        RunError: the run is not open.
        DataError: an item id is in the run already.
    """
    batch = [item for group in groups for item in group]
    # A chunk per group and iteration; `starts` count from the first item accepted now.
    starts = itertools.accumulate(map(len, groups), initial=0)
    chunks = [(n, start, len(group)) for start, group in zip(starts, groups, strict=False) for n in range(spec.repeat)]
    nonces = [secrets.token_hex(8) for _ in chunks]
    columns = {
        "run_id": run_id,
        "item_count": len(batch),
        "ids": [item.id for item in batch],
        "questions": [item.question for item in batch],
        "responses": [item.response for item in batch],
        "truths": [None if item.truth is None else item.truth.value for item in batch],
        "sources": [item.source for item in batch],
        "categories": [item.category for item in batch],
        "subcategories": [item.subcategory for item in batch],
        "hashes": [item.content_hash for item in batch],
        "kinds": [item.kind.value for item in batch],
        "histories": [_as_json(item.history) for item in batch],
        "chunk_count": len(chunks),
        "iterations": [iteration for iteration, _, _ in chunks],
        "starts": [start for _, start, _ in chunks],
        "sizes": [size for _, _, size in chunks],
        "nonces": nonces,
        **(submitted or {}),
    }
    try:
        # One statement needs no transaction of its own, and saves two round trips; more than one does.
        level = "AUTOCOMMIT" if also is None else "READ COMMITTED"
        with engine.connect().execution_options(isolation_level=level) as connection, connection.begin():
            row = connection.execute(_ACCEPT if submitted is None else _ACCEPT_SUBMITTED, columns).one_or_none()
            if row is not None and also is not None:
                also(connection, row.first_seq)
    except IntegrityError as error:
        detail = getattr(getattr(error.orig, "diag", None), "message_detail", None) or error.orig
        raise DataError(f"an item id is in run {run_id} already: {str(detail).strip()}") from error
    if row is None:
        raise RunError(f"run {run_id} takes no more items: it is sealed, cancelled or gone")
    seqs = itertools.count(row.first_seq)
    places = zip(itertools.count(row.first_chunk), nonces, row.ordinals or (), strict=False)
    accepted = []
    for group in groups:
        wire = tuple(ChunkItem.of(next(seqs), item) for item in group)
        for iteration, (chunk_no, nonce, ordinal) in zip(range(spec.repeat), places, strict=False):
            chunk = spec.chunk(
                *(run_id, chunk_no, wire),
                iteration=iteration,
                enqueued_at=row.enqueued_at,
                nonce=nonce,
                ordinal=ordinal,
                fingerprint=row.fingerprint,
            )
            accepted.append(chunk)
    return accepted


def _as_json(history: Sequence[Turn]) -> str | None:
    return clean_json([turn.model_dump() for turn in history]) if history else None


def seal(engine: sa.Engine, run_id: str, *, invalid_count: int = 0, invalid_rows: Sequence[InvalidRow] = ()) -> bool:
    """Fix the expected count; True where every item had settled by then, so that nobody else will finish the run.

    Sealing a run that is sealed already changes nothing and returns False.
    """
    rows = [row.model_dump() for row in invalid_rows[:_INVALID_ROWS_KEPT]]
    values = {
        "run_id": run_id,
        "invalid_count": invalid_count,
        "invalid_rows": clean_json(rows),
    }
    return bool(fetch_value(engine, _SEAL, values))


def seal_past_days(engine: sa.Engine) -> list[str]:
    """Seal the runs of live traffic whose day ended some hours ago; returns their ids.

    Late traffic goes to the day's next run, as where an operator has ended one.
    """
    past = [row.id for row in fetch_all(engine, _PAST_DAYS, {"grace": _GRACE})]
    for run_id in past:  # one at a time, so that no two rows of `runs` are locked at once
        seal(engine, run_id)
    return past


class LiveRun(NamedTuple):
    """An unsealed run of live traffic, and for how many seconds more it is today's."""

    id: str
    ends_in_s: float


def todays_run(engine: sa.Engine, spec: RunSpec, *, tenant: str) -> LiveRun:
    """Today's unsealed run of a tenant and guard (by the ledger's clock), opened where there is none.

    Traffic that is judged otherwise has a run of its own: what is lost is judged again as its run says. Where an
    operator has ended the day's run, the next one of that day has the suffix -2, and so on.
    """
    analysed = spec.mode is Mode.GENERATE and not spec.verdict_only
    otherwise = ("-analysis" if analysed else "") + ("" if spec.cache else "-uncached")
    otherwise += "" if spec.form is TextForm.AS_IS else f"-{spec.form}"
    today = sa.text(
        """
        SELECT to_char(now, 'YYYYMMDD') AS day,
               extract(epoch FROM date_trunc('day', now) + interval '1 day' - now)::float8 AS ends_in_s
        FROM (SELECT now() AT TIME ZONE 'UTC' AS now) AS clock
        """
    )
    ((day, ends_in_s),) = fetch_all(engine, today)
    first = name = f"live-{tenant}-{spec.guard}-{spec.mode}{otherwise}-{day}"
    number = 1
    while True:  # a name is looked at twice at most: if another process takes it in between, its run is there
        known = fetch_one(engine, sa.select(runs.c.id, runs.c.state).where(runs.c.name == name))
        if known is None:
            run_id = new_run_id()
            if open_run(engine, run_id, name, spec):
                return LiveRun(run_id, ends_in_s)
        elif known.state == RunState.OPEN:
            return LiveRun(known.id, ends_in_s)
        else:
            number += 1
            name = f"{first}-{number}"


class Submission(NamedTuple):
    """An item's tenant, the caller's own name for it, the policy to apply and the address to notify."""

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
    """A request with this idempotency key has been accepted; `made` is its outcome."""

    def __init__(self, made: dict[str, Any]) -> None:
        super().__init__("a request with this idempotency key has been accepted")
        self.made = made


class KeyReusedError(LibraError):
    """The idempotency key stands for another request."""


class KeyInFlightError(LibraError):
    """A request with this idempotency key is being accepted at this moment."""


_TRY_LOCK: Final = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:tenant || '/' || :key, 0))")


def accept_submitted(
    engine: sa.Engine,
    run_id: str,
    spec: RunSpec,
    groups: Sequence[Sequence[Item]],
    submissions: Mapping[str, Submission],
    *,
    once: IdempotencyKey | None = None,
) -> list[JudgeChunk]:
    """`accept` for items with submissions, by item id; with `once`, not a second time.

    Raises:
        RunError: the run is not open.
        AlreadyMadeError: the key was used for the same request; nothing was written.
        KeyReusedError: the key was used for another request.
        KeyInFlightError: the key is being used at this moment.
    """
    ids = [item.id for group in groups for item in group]
    said = [submissions[item_id] for item_id in ids]

    def remember(connection: sa.Connection, first_seq: int) -> None:
        if once is not None:
            seq_of = {item_id: first_seq + offset for offset, item_id in enumerate(ids)}
            make_once(connection, once, {"run_id": run_id, "seqs": [seq_of[item_id] for item_id in submissions]})

    columns = {
        "tenants": [of_item.tenant for of_item in said],
        "custom_ids": [of_item.custom_id for of_item in said],
        "policies": [of_item.policy for of_item in said],
        "callback_urls": [of_item.callback_url for of_item in said],
        "metadata": [None if of_item.metadata is None else clean_json(of_item.metadata) for of_item in said],
    }
    return accept(engine, run_id, spec, groups, submitted=columns, also=None if once is None else remember)


def make_once(connection: sa.Connection, once: IdempotencyKey, made: dict[str, Any]) -> None:
    """Remember what a request makes, in the transaction that makes it.

    Raises:
        AlreadyMadeError, KeyReusedError, KeyInFlightError: let it roll the transaction back.
    """
    # The lock makes the second of two concurrent requests fail at once rather than wait for the first one's commit.
    if not connection.scalar(_TRY_LOCK, {"tenant": once.tenant, "key": once.key}):
        raise KeyInFlightError("a request with this idempotency key is being accepted")
    if (row := connection.execute(_find(once)).one_or_none()) is not None:
        raise AlreadyMadeError(_same_request(row, once))
    connection.execute(sa.insert(idempotency_keys).values(**once._asdict(), made=made))


def find_made(engine: sa.Engine, once: IdempotencyKey) -> dict[str, Any] | None:
    """The outcome of the request when it was first sent, or None where it is new.

    Raises:
        KeyReusedError: the key stands for another request.
    """
    row = fetch_one(engine, _find(once))
    return None if row is None else _same_request(row, once)


def _find(once: IdempotencyKey) -> sa.Select[tuple[bytes, dict[str, Any]]]:
    key = sa.and_(idempotency_keys.c.tenant == once.tenant, idempotency_keys.c.key == once.key)
    return sa.select(idempotency_keys.c.request_hash, idempotency_keys.c.made).where(key)


def _same_request(row: Row, once: IdempotencyKey) -> dict[str, Any]:
    if bytes(row.request_hash) != once.request_hash:
        raise KeyReusedError("this idempotency key stands for another request")
    made: dict[str, Any] = row.made
    return made


def forget_old_keys(engine: sa.Engine, *, older_than_s: float) -> int:
    """Drop idempotency keys of that age; returns their number."""
    oldest = sa.func.now() - timedelta(seconds=older_than_s)
    return execute(engine, sa.delete(idempotency_keys).where(idempotency_keys.c.created_at < oldest))


def pending_items(engine: sa.Engine, run_ids: Sequence[str]) -> dict[str, int]:
    """The number of items that have not settled, by run."""
    if not run_ids:
        return {}
    pending = runs.c.accepted * runs.c.repeat - runs.c.settled
    found = fetch_all(engine, sa.select(runs.c.id, pending.label("pending")).where(runs.c.id.in_(run_ids)))
    return {row.id: row.pending for row in found}
