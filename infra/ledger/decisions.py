"""What policies decided: for fresh verdicts in their own transaction, for stored ones on request, never forgotten.

A decision is superseded by a later one, and the one that is not superseded is current. Items that did not come through
the gateway have none, and neither has a child run: its verdicts stand beside its parent's and move nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger import outbox
from infra.ledger.engine import disable_nested_loops
from infra.ledger.outbox import exported_metadata
from infra.ledger.policies import active_policies
from schemas.items import Label, submitted_name
from schemas.policy import Action, Decision, Policy, decide, surface_of
from schemas.verdicts import Outcome, Verdict
from schemas.webhooks import Event, JudgedItem

_FETCH: Final = 2_000
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


class Judged(NamedTuple):
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
    """What another version makes of a stored verdict. `before` is None where nothing was decided yet."""

    subject: Subject
    judged: Judged
    before: Action | None
    decision_id: int | None
    ruling: Ruling

    @property
    def moves(self) -> bool:
        """Whether the platform has to do something else than before."""
        return self.before is not self.ruling.decision.action


class CurrentDecision(NamedTuple):
    """Where an item stands: a human's decision before a policy's."""

    action: Action
    reason: str
    policy: str | None
    policy_version: int | None
    moderator: str | None
    decided_at: datetime


def decide_settled(connection: sa.Connection, run_id: str, settled: Sequence[Judged]) -> None:
    """Decide verdicts that this transaction has just written, and put what is to be told into the outbox."""
    event = Event.JUDGED
    wanted = {"run_id": run_id, "seqs": [judged.verdict.seq for judged in settled], "event": event.value}
    found = connection.execute(_SUBMITTED, wanted).all()
    subjects = {row.seq: _subject(row) for row in found}
    if not subjects:
        return
    policies = active_policies(connection, {subject.policy for subject in subjects.values() if subject.policy})
    rulings: list[tuple[Subject, Judged, Ruling | None]] = []
    for judged in settled:
        subject = subjects.get(judged.verdict.seq)
        if subject:
            rulings.append((subject, judged, rule(subject, judged.verdict, policies)))
    _insert(connection, [(subject, judged, ruling) for subject, judged, ruling in rulings if ruling])
    notified = {row.seq for row in found if row.notified}  # nobody else's message is rendered or looked up again
    letters = [_letter(subject, judged, ruling) for subject, judged, ruling in rulings if subject.seq in notified]
    outbox.post(connection, run_id, event, letters)


def rule(subject: Subject, verdict: Verdict, policies: dict[str, Policy]) -> Ruling | None:
    """What the policy of an item makes of its verdict; None where none applies."""
    if subject.policy is None:
        return None
    policy = policies.get(subject.policy)
    if policy is None:
        unknown = Decision(Action.REVIEW, "the policy is not in the ledger, or of a form this version cannot read")
        return Ruling(unknown, subject.policy, None)
    return Ruling(decide(policy, verdict, surface=subject.surface), policy.policy, policy.version)


def changes(engine: sa.Engine, policy: Policy, since: datetime, *, tenant: str | None = None) -> Iterator[Change]:
    """What a policy would make of the verdicts settled since then whose items it applies to, streamed.

    Items that a human has decided are left out: no policy overrules a human.
    """
    values = {"policy": policy.policy, "since": since, "tenant": tenant}
    with engine.connect() as connection:
        for row in connection.execution_options(yield_per=_FETCH).execute(sa.text(_STORED), values):
            subject, judged = _subject(row), stored_verdict(row)
            ruling = rule(subject, judged.verdict, {policy.policy: policy})
            assert ruling is not None  # noqa: S101 - the query asks for items with this policy
            before = Action(row.action) if row.action else None
            same = (row.decided_by, row.policy_version, before) == (
                policy.policy,
                policy.version,
                ruling.decision.action,
            )
            if not same:
                yield Change(subject, judged, before, row.decision_id, ruling)


def apply_changes(engine: sa.Engine, found: Iterator[Change]) -> Iterator[Change]:
    """Make changes current, batch by batch, and tell platforms what moved; yields those that really took effect.

    A change takes no effect where somebody else, a human above all, decided meanwhile.
    """
    while batch := list(itertools.islice(found, _BATCH)):
        with engine.begin() as connection:
            done = _apply(connection, batch)
        yield from done


def _apply(connection: sa.Connection, batch: Sequence[Change]) -> list[Change]:
    untouched = _without_human(connection, batch)
    superseded = _supersede(connection, [change.decision_id for change in untouched if change.decision_id])
    fresh = [change for change in untouched if change.decision_id is None or change.decision_id in superseded]
    inserted = _insert(connection, [(change.subject, change.judged, change.ruling) for change in fresh])
    done = [change for change in fresh if _key(change.subject, change.judged) in inserted]
    moved = [change for change in done if change.moves]
    for run_id, group in itertools.groupby(moved, key=lambda change: change.subject.run_id):
        letters = [_letter(c.subject, c.judged, c.ruling, previous=c.before) for c in group]
        outbox.post(connection, run_id, Event.REDECIDED, letters)
    return done


def _without_human(connection: sa.Connection, batch: Sequence[Change]) -> list[Change]:
    """Those of the batch that no human has decided; none can until this transaction ends."""
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
    keys = {
        "run_ids": [change.subject.run_id for change in batch],
        "seqs": [change.subject.seq for change in batch],
    }
    connection.execute(lock, keys)
    decided = {(row.run_id, row.seq) for row in connection.execute(reviewed, keys)}
    return [change for change in batch if (change.subject.run_id, change.subject.seq) not in decided]


def _supersede(connection: sa.Connection, decision_ids: Sequence[int]) -> set[int]:
    statement = sa.text(
        """
        UPDATE decisions SET superseded_at = now()
        WHERE id = ANY(CAST(:ids AS bigint[])) AND superseded_at IS NULL RETURNING id
        """
    )
    return set(connection.scalars(statement, {"ids": list(decision_ids)}))


def _insert(connection: sa.Connection, rulings: Sequence[tuple[Subject, Judged, Ruling]]) -> set[tuple[str, int, int]]:
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


def _key(subject: Subject, judged: Judged) -> tuple[str, int, int]:
    return subject.run_id, subject.seq, judged.iteration


def _letter(
    subject: Subject, judged: Judged, ruling: Ruling | None, *, previous: Action | None = None
) -> outbox.WebhookMessage:
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
    return outbox.WebhookMessage(subject.seq, subject.tenant, subject.callback_url, data)


def _subject(row: sa.Row[tuple[object, ...]]) -> Subject:
    metadata = exported_metadata(row.metadata)
    return Subject(
        run_id=row.run_id,
        seq=row.seq,
        tenant=row.tenant,
        custom_id=row.custom_id,
        policy=row.policy,
        callback_url=row.callback_url,
        metadata=metadata,
        item_id=row.item_id,
        surface=surface_of(metadata, row.source),
    )


def stored_verdict(row: sa.Row[tuple[object, ...]]) -> Judged:
    """A verdict as the ledger has it (seq, iteration, outcome, label, p_unsafe, categories, reason, fingerprint)."""
    verdict = Verdict(
        seq=row.seq,
        outcome=Outcome(row.outcome),
        label=Label(row.label) if row.label else None,
        p_unsafe=row.p_unsafe,
        categories=tuple(name for name in row.categories.split(",") if name),
        reason=row.reason,
    )
    return Judged(verdict, row.iteration, row.fingerprint)


class Stored(NamedTuple):
    """A stored verdict to try a policy on; `action` is the current one, texts are empty unless asked for."""

    run_id: str
    seq: int
    item_id: str
    surface: str
    judged: Judged
    action: Action | None
    question: str
    response: str


_TRY: Final = """
    SELECT v.run_id, v.seq, v.iteration, v.outcome, v.label, v.p_unsafe, v.categories, v.reason, v.fingerprint,
           i.item_id, i.source, s.metadata, d.action, CASE WHEN :texts THEN i.question ELSE '' END AS question,
           CASE WHEN :texts THEN i.response ELSE '' END AS response
    FROM {verdicts} v JOIN items i USING (run_id, seq) LEFT JOIN submissions s USING (run_id, seq)
    LEFT JOIN decisions d ON d.run_id = v.run_id AND d.seq = v.seq AND d.iteration = v.iteration
                          AND d.superseded_at IS NULL
"""
_TRY_RUN: Final = _TRY.format(verdicts="verdicts") + "WHERE v.run_id = :run_id ORDER BY v.seq, v.iteration"
_TRY_SAMPLE: Final = _TRY.format(
    verdicts="""(
        SELECT * FROM verdicts WHERE iteration = 0
        ORDER BY hashtextextended(run_id || '/' || seq, :seed) LIMIT :sample)"""
)


def verdicts_to_try(
    engine: sa.Engine, *, run_id: str | None = None, sample: int = 0, seed: int = 0, texts: bool = False
) -> Iterator[Stored]:
    """The verdicts of a run, or without one a random sample of all that are stored, streamed."""
    values = {"run_id": run_id, "texts": texts, "sample": sample, "seed": seed}
    statement = _TRY_RUN if run_id else _TRY_SAMPLE
    with engine.connect() as connection:
        if run_id:
            disable_nested_loops(connection)
        for row in connection.execution_options(yield_per=_FETCH).execute(sa.text(statement), values):
            surface = surface_of(exported_metadata(row.metadata), row.source)
            action = Action(row.action) if row.action else None
            yield Stored(
                row.run_id, row.seq, row.item_id, surface, stored_verdict(row), action, row.question, row.response
            )


def standing_of(engine: sa.Engine, run_id: str, seqs: Sequence[int]) -> dict[int, CurrentDecision]:
    """The action that holds now for some items of a run (first iteration); items without one are missing."""
    statement = sa.text(
        """
        SELECT w.seq, coalesce(h.action, d.action) AS action, coalesce(h.note, d.reason) AS reason, d.policy,
               d.policy_version, h.moderator, coalesce(h.decided_at, d.decided_at) AS decided_at
        FROM unnest(CAST(:seqs AS bigint[])) AS w(seq)
        LEFT JOIN decisions d ON d.run_id = :run_id AND d.seq = w.seq AND d.iteration = 0 AND d.superseded_at IS NULL
        LEFT JOIN LATERAL (
            SELECT * FROM reviews r WHERE r.run_id = :run_id AND r.seq = w.seq ORDER BY r.id DESC LIMIT 1) AS h ON true
        WHERE coalesce(h.action, d.action) IS NOT NULL
        """
    )
    with engine.connect() as connection:
        rows = connection.execute(statement, {"run_id": run_id, "seqs": list(seqs)})
        return {
            row.seq: CurrentDecision(
                Action(row.action), row.reason, row.policy, row.policy_version, row.moderator, row.decided_at
            )
            for row in rows
        }
