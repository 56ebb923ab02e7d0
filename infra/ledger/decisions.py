"""Policies and their decisions: on fresh verdicts in their own transaction, on stored ones on request, never forgotten.

Every version of a policy is kept as it was put; one of each name is active. Collectors read the active version in the
transaction of the decision, so that they all agree; a stored version never changes, so its parsed form may be kept.

A decision is superseded by a later one, and the one that is not superseded is current. Items that did not come through
the gateway have none, and neither has a child run: its verdicts stand alongside its parent's and move nothing.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects.postgresql import insert

from infra.errors import PolicyNotFoundError, TakenError
from infra.ledger.engine import Row, execute, fetch_all, named, stream
from infra.ledger.items import SHOWN_QUESTION, verdict_from
from infra.ledger.tables import policies, tenant_policies
from infra.ledger.webhooks import WebhookMessage, exported_metadata, post
from schemas.items import submitted_name
from schemas.policy import Action, Decision, Policy, decide, surface_of
from schemas.verdicts import Verdict
from schemas.webhooks import Event, JudgedItem

_ACTIVE: Final = sa.text(
    "SELECT name, body::text AS body FROM policies WHERE active AND name = ANY(CAST(:names AS text[]))"
)


class StoredPolicy(NamedTuple):
    """One version of a policy. `tenants`: those whose default this name is."""

    policy: Policy
    active: bool
    created_at: datetime
    tenants: tuple[str, ...]


@lru_cache(maxsize=256)
def _parsed(body: str) -> Policy:
    return Policy.model_validate_json(body)


def active_policies(connection: sa.Connection, names: Iterable[str]) -> dict[str, Policy]:
    """The active versions of these policies by name.

    A name that was never put is missing, and so is one whose active version was put by a newer release of ours with
    rules that this one does not know: a fleet is upgraded machine by machine.
    """
    wanted = list(names)
    found: dict[str, Policy] = {}
    for row in connection.execute(_ACTIVE, {"names": wanted}) if wanted else ():
        with suppress(ValidationError):
            found[row.name] = _parsed(row.body)
    return found


class PolicyNames:
    """The names that items may ask for, remembered for `keep_s` seconds; names are only ever added. Thread-safe."""

    def __init__(self, engine: sa.Engine, *, keep_s: float = 1.0) -> None:
        self._engine = engine
        self._keep_s = keep_s
        self._names: frozenset[str] = frozenset()
        self._read_at = -math.inf

    def __call__(self, name: str) -> bool:
        """True where there is a policy of that name."""
        if name not in self._names and time.monotonic() - self._read_at >= self._keep_s:
            active = sa.select(policies.c.name).where(policies.c.active)
            self._names = frozenset(row.name for row in fetch_all(self._engine, active))
            self._read_at = time.monotonic()
        return name in self._names


def put_policy(engine: sa.Engine, policy: Policy) -> bool:
    """Store a version and make it the active one; False where it was stored already (it is active now all the same).

    Raises:
        TakenError: this version is stored with other rules.
    """
    this = sa.and_(policies.c.name == policy.policy, policies.c.version == policy.version)
    others = sa.and_(policies.c.name == policy.policy, policies.c.version != policy.version, policies.c.active)
    made = insert(policies).values(
        name=policy.policy, version=policy.version, body=policy.model_dump(mode="json"), active=True
    )
    with engine.begin() as connection:
        # One put at a time: two that each deactivate the other's version would leave none, or two, active.
        connection.execute(sa.text("LOCK TABLE policies IN SHARE ROW EXCLUSIVE MODE"))
        stored: str | None = connection.scalar(sa.select(sa.cast(policies.c.body, sa.Text)).where(this))
        if stored is not None and _parsed(stored) != policy:
            raise TakenError(
                f"version {policy.version} of policy {policy.policy} is stored with other rules; "
                "give the changed policy another version"
            )
        connection.execute(sa.update(policies).where(others).values(active=False))
        connection.execute(made.on_conflict_do_update(index_elements=["name", "version"], set_={"active": True}))
    return stored is None


def stored_policies(engine: sa.Engine, name: str | None = None) -> list[StoredPolicy]:
    """Every stored version, by name, the newest version first."""
    statement = sa.text(
        """
        SELECT p.body::text AS body, p.active, p.created_at,
               ARRAY(SELECT tenant FROM tenant_policies t WHERE t.policy = p.name ORDER BY tenant) AS tenants
        FROM policies p WHERE CAST(:name AS text) IS NULL OR p.name = :name ORDER BY p.name, p.version DESC
        """
    )
    return [
        StoredPolicy(_parsed(row.body), row.active, row.created_at, tuple(row.tenants))
        for row in fetch_all(engine, statement, {"name": name})
    ]


def stored_policy(engine: sa.Engine, name: str, version: int | None = None) -> StoredPolicy:
    """One version of a policy; without a version the active one.

    Raises:
        PolicyNotFoundError: there is none.
    """
    for found in stored_policies(engine, name):
        if found.policy.version == version or (version is None and found.active):
            return found
    what = name if version is None else f"{name}@{version}"
    raise PolicyNotFoundError(f"no policy {what} in the ledger")


def set_tenant_policy(engine: sa.Engine, tenant: str, name: str | None) -> None:
    """Make a policy the default of a tenant's items from now on; None: no policy.

    Raises:
        PolicyNotFoundError: there is no such policy.
    """
    if name is None:
        execute(engine, sa.delete(tenant_policies).where(tenant_policies.c.tenant == tenant))
        return
    stored_policy(engine, name)
    made = insert(tenant_policies).values(tenant=tenant, policy=name)
    execute(engine, made.on_conflict_do_update(index_elements=["tenant"], set_={"policy": name}))


_BATCH: Final = 500

_SUBMITTED: Final = sa.text(
    """
    SELECT s.run_id, s.seq, s.tenant, s.custom_id, coalesce(s.policy, t.policy) AS policy, s.callback_url, s.metadata,
           i.item_id, i.source, s.callback_url IS NOT NULL OR EXISTS (
               SELECT 1 FROM webhook_endpoints e
               WHERE e.tenant = s.tenant AND e.disabled_at IS NULL AND :event = ANY(e.events)) AS notified
    FROM submissions s
    -- OFFSET keeps this a question per item: as a plain join, an unknown run's items would all be read for each.
    CROSS JOIN LATERAL (SELECT item_id, source FROM items WHERE run_id = s.run_id AND seq = s.seq OFFSET 0) AS i
    LEFT JOIN tenant_policies t USING (tenant)
    WHERE s.run_id = :run_id AND s.seq = ANY(CAST(:seqs AS bigint[]))
      AND NOT EXISTS (SELECT 1 FROM reviews h WHERE h.run_id = s.run_id AND h.seq = s.seq)
    """
)

_INSERT: Final = sa.text(
    """
    INSERT INTO decisions (run_id, seq, iteration, policy, policy_version, action, category, surface, reason)
    SELECT * FROM unnest(CAST(:run_ids AS text[]), CAST(:seqs AS bigint[]), CAST(:iterations AS int[]),
                         CAST(:policies AS text[]), CAST(:versions AS int[]), CAST(:actions AS text[]),
                         CAST(:categories AS text[]), CAST(:surfaces AS text[]), CAST(:reasons AS text[]))
    ON CONFLICT DO NOTHING
    RETURNING run_id, seq, iteration
    """
)

_STORED: Final = """
    SELECT s.run_id, s.seq, s.tenant, s.custom_id, coalesce(s.policy, t.policy) AS policy, s.callback_url, s.metadata,
           i.item_id, i.source, v.iteration, v.outcome, v.label, v.p_unsafe, v.categories, v.reason, v.fingerprint,
           d.id AS decision_id, d.action, d.policy AS decided_by, d.policy_version
    FROM submissions s
    JOIN verdicts v USING (run_id, seq)
    JOIN items i USING (run_id, seq)
    LEFT JOIN tenant_policies t USING (tenant)
    LEFT JOIN decisions d ON d.run_id = v.run_id AND d.seq = v.seq AND d.iteration = v.iteration
                          AND d.superseded_at IS NULL
    WHERE coalesce(s.policy, t.policy) = :policy AND v.settled_at >= :since
      AND (CAST(:tenant AS text) IS NULL OR s.tenant = :tenant)
      AND NOT EXISTS (SELECT 1 FROM reviews h WHERE h.run_id = s.run_id AND h.seq = s.seq)
    ORDER BY s.run_id, s.seq, v.iteration
"""


class Subject(NamedTuple):
    """An item that came through the gateway; `policy` is the name of the one that applies to it, if any."""

    run_id: str
    seq: int
    tenant: str
    custom_id: str | None
    policy: str | None
    callback_url: str | None
    metadata: dict[str, object]
    item_id: str
    surface: str


class StoredVerdict(NamedTuple):
    """A settled verdict with the place and the fingerprint it has in the ledger."""

    verdict: Verdict
    iteration: int
    fingerprint: str | None


class Ruling(NamedTuple):
    """A decision with the policy behind it; no version: the policy is not in the ledger."""

    decision: Decision
    policy: str
    version: int | None


class Change(NamedTuple):
    """A stored verdict decided by another version. `before` is None where nothing was decided yet."""

    subject: Subject
    judged: StoredVerdict
    before: Action | None
    decision_id: int | None
    ruling: Ruling

    @property
    def moves(self) -> bool:
        """True where the platform has to do something else than before."""
        return self.before is not self.ruling.decision.action


def decide_settled(connection: sa.Connection, run_id: str, settled: Sequence[StoredVerdict]) -> None:
    """Decide verdicts that this transaction has just written, and put their notifications into the outbox.

    Items that a human decided while they were pending are left out: no policy overrules a human. A review of a pending
    item locks its chunk, as this transaction has, so that one of the two sees the other.
    """
    event = Event.JUDGED
    wanted = {"run_id": run_id, "seqs": [judged.verdict.seq for judged in settled], "event": event.value}
    found = connection.execute(_SUBMITTED, wanted).all()
    subjects = {row.seq: _subject(row) for row in found}
    if not subjects:
        return
    known = active_policies(connection, {subject.policy for subject in subjects.values() if subject.policy})
    rulings: list[tuple[Subject, StoredVerdict, Ruling | None]] = []
    for judged in settled:
        subject = subjects.get(judged.verdict.seq)
        if subject:
            rulings.append((subject, judged, rule(subject, judged.verdict, known)))
    _insert(connection, [(subject, judged, ruling) for subject, judged, ruling in rulings if ruling])
    notified = {row.seq for row in found if row.notified}  # no other message is rendered
    messages = [_message(subject, judged, ruling) for subject, judged, ruling in rulings if subject.seq in notified]
    post(connection, run_id, event, messages)


def rule(subject: Subject, verdict: Verdict, known: dict[str, Policy]) -> Ruling | None:
    """The decision that an item's policy makes on its verdict; None where none applies."""
    if subject.policy is None:
        return None
    policy = known.get(subject.policy)
    if policy is None:
        unknown = Decision(Action.REVIEW, "the policy is not in the ledger, or of a form this version cannot read")
        return Ruling(unknown, subject.policy, None)
    return Ruling(decide(policy, verdict, surface=subject.surface), policy.policy, policy.version)


def changes(engine: sa.Engine, policy: Policy, since: datetime, *, tenant: str | None = None) -> Iterator[Change]:
    """A policy's decisions on the verdicts settled since then whose items it applies to, where they change; streamed.

    Items that a human has decided are left out: no policy overrules a human.
    """
    values = {"policy": policy.policy, "since": since, "tenant": tenant}
    for row in stream(engine, sa.text(_STORED), values):
        subject, judged = _subject(row), stored_verdict(row)
        ruling = rule(subject, judged.verdict, {policy.policy: policy})
        assert ruling is not None  # noqa: S101 - the query asks for items with this policy
        before = Action(row.action) if row.action else None
        decided = (row.decided_by, row.policy_version, before)
        if decided != (policy.policy, policy.version, ruling.decision.action):
            yield Change(subject, judged, before, row.decision_id, ruling)


def apply_changes(engine: sa.Engine, found: Iterator[Change]) -> Iterator[Change]:
    """Make changes current, batch by batch, and notify platforms of those that move; yields those that took effect.

    A change takes no effect where somebody else, a human above all, decided meanwhile.
    """
    lock = sa.text(
        """
        SELECT i.run_id, i.seq FROM items i
        JOIN unnest(CAST(:run_ids AS text[]), CAST(:seqs AS bigint[])) AS w(run_id, seq) USING (run_id, seq)
        ORDER BY i.run_id, i.seq FOR UPDATE OF i
        """
    )
    reviewed = sa.text(
        """
        SELECT DISTINCT run_id, seq FROM reviews
        JOIN unnest(CAST(:run_ids AS text[]), CAST(:seqs AS bigint[])) AS w(run_id, seq) USING (run_id, seq)
        """
    )
    supersede = sa.text(
        """
        UPDATE decisions SET superseded_at = now()
        WHERE id = ANY(CAST(:ids AS bigint[])) AND superseded_at IS NULL RETURNING id
        """
    )
    while batch := list(itertools.islice(found, _BATCH)):
        keys = {
            "run_ids": [change.subject.run_id for change in batch],
            "seqs": [change.subject.seq for change in batch],
        }
        with engine.begin() as connection:
            # A review locks its item as well, and decides before this transaction or after it.
            connection.execute(lock, keys)
            human = {(row.run_id, row.seq) for row in connection.execute(reviewed, keys)}
            untouched = [change for change in batch if (change.subject.run_id, change.subject.seq) not in human]
            former = [change.decision_id for change in untouched if change.decision_id]
            superseded = set(connection.scalars(supersede, {"ids": former}))
            fresh = [change for change in untouched if change.decision_id is None or change.decision_id in superseded]
            inserted = _insert(connection, [(change.subject, change.judged, change.ruling) for change in fresh])
            done = [c for c in fresh if (c.subject.run_id, c.subject.seq, c.judged.iteration) in inserted]
            moved = [change for change in done if change.moves]
            for run_id, group in itertools.groupby(moved, key=lambda change: change.subject.run_id):
                messages = [_message(c.subject, c.judged, c.ruling, previous=c.before) for c in group]
                post(connection, run_id, Event.REDECIDED, messages)
        yield from done


def _insert(
    connection: sa.Connection, rulings: Sequence[tuple[Subject, StoredVerdict, Ruling]]
) -> set[tuple[str, int, int]]:
    if not rulings:
        return set()
    columns = {
        "run_ids": [subject.run_id for subject, _, _ in rulings],
        "seqs": [subject.seq for subject, _, _ in rulings],
        "iterations": [judged.iteration for _, judged, _ in rulings],
        "policies": [ruling.policy for _, _, ruling in rulings],
        "versions": [ruling.version for _, _, ruling in rulings],
        "actions": [ruling.decision.action.value for _, _, ruling in rulings],
        "categories": [ruling.decision.category for _, _, ruling in rulings],
        "surfaces": [subject.surface for subject, _, _ in rulings],
        "reasons": [ruling.decision.reason for _, _, ruling in rulings],
    }
    return {(row.run_id, row.seq, row.iteration) for row in connection.execute(_INSERT, columns)}


def _message(
    subject: Subject, judged: StoredVerdict, ruling: Ruling | None, *, previous: Action | None = None
) -> WebhookMessage:
    verdict = judged.verdict
    data = JudgedItem(
        run_id=subject.run_id,
        seq=subject.seq,
        id=submitted_name(subject.run_id, subject.seq),
        custom_id=subject.custom_id,
        metadata=subject.metadata,
        iteration=judged.iteration,
        outcome=verdict.outcome,
        label=verdict.label,
        p_unsafe=verdict.p_unsafe,
        categories=verdict.categories,
        fingerprint=judged.fingerprint,
        action=ruling.decision.action if ruling else None,
        policy=ruling.policy if ruling else None,
        policy_version=ruling.version if ruling else None,
        reason=ruling.decision.reason if ruling else None,
        previous_action=previous,
    )
    return WebhookMessage(subject.seq, subject.tenant, subject.callback_url, data)


def _subject(row: Row) -> Subject:
    metadata = exported_metadata(row.metadata)
    return Subject(**{**named(Subject, row), "metadata": metadata}, surface=surface_of(metadata, row.source))


def stored_verdict(row: Row) -> StoredVerdict:
    """A verdict as the ledger has it, from a row with columns of `verdicts`."""
    return StoredVerdict(verdict_from(row), row.iteration, row.fingerprint)


class PolicyTrial(NamedTuple):
    """A stored verdict to try a policy on; `action` is the current one, texts are empty unless asked for."""

    run_id: str
    seq: int
    item_id: str
    surface: str
    judged: StoredVerdict
    action: Action | None
    question: str
    response: str


_TRY: Final = """
    SELECT v.run_id, v.seq, v.iteration, v.outcome, v.label, v.p_unsafe, v.categories, v.reason, v.fingerprint,
           i.item_id, i.source, s.metadata, d.action, CASE WHEN :texts THEN i.response ELSE '' END AS response,
           {question}
    FROM {verdicts} v JOIN items i USING (run_id, seq) LEFT JOIN submissions s USING (run_id, seq)
    LEFT JOIN decisions d ON d.run_id = v.run_id AND d.seq = v.seq AND d.iteration = v.iteration
                          AND d.superseded_at IS NULL
"""
_TRY_RUN: Final = (
    _TRY.format(verdicts="verdicts", question=SHOWN_QUESTION) + "WHERE v.run_id = :run_id ORDER BY v.seq, v.iteration"
)
_TRY_SAMPLE: Final = _TRY.format(
    question=SHOWN_QUESTION,
    verdicts="""(
        SELECT * FROM verdicts WHERE iteration = 0
        ORDER BY hashtextextended(run_id || '/' || seq, :seed) LIMIT :sample)""",
)


def verdicts_to_try(
    engine: sa.Engine, *, run_id: str | None = None, sample: int = 0, seed: int = 0, texts: bool = False
) -> Iterator[PolicyTrial]:
    """The verdicts of a run, or without one a random sample of all that are stored, streamed."""
    values = {"run_id": run_id, "texts": texts, "sample": sample, "seed": seed}
    for row in stream(engine, sa.text(_TRY_RUN if run_id else _TRY_SAMPLE), values, whole_run=run_id is not None):
        surface = surface_of(exported_metadata(row.metadata), row.source)
        action = Action(row.action) if row.action else None
        yield PolicyTrial(
            row.run_id,
            row.seq,
            row.item_id,
            surface,
            stored_verdict(row),
            action,
            row.question if texts else "",
            row.response,
        )
