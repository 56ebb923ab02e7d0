"""Items as the gateway accepts them: in the ledger with a row in `submissions`, waiting for a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa

from infra.ledger import intake, tables
from infra.ledger.engine import fetch_all
from infra.ledger.reviews import Review, review_history
from infra.servers.services import Services
from schemas.items import Label
from schemas.messages import JudgeChunk, Lane, VerdictChunk
from schemas.policy import Policy
from schemas.verdicts import Outcome, Verdict
from tests.support.make import items, spec, verdicts_for

_INSERT = sa.text(
    "INSERT INTO submissions (run_id, seq, tenant, custom_id, policy, callback_url, metadata) "
    "VALUES (:run_id, :seq, :tenant, :custom_id, :policy, :callback_url, CAST(:metadata AS jsonb))"
)


def submitted(
    services: Services,
    count: int = 1,
    *,
    tenant: str = "forum",
    policy: str | None = None,
    callback_url: str | None = None,
    metadata: dict[str, object] | None = None,
    prefix: str = "item",
    lane: Lane = Lane.LIVE,
) -> JudgeChunk:
    """One chunk of items that came through the gateway, in a run of its own."""
    order = spec(lane=lane)
    run_id = intake.create_run(services.engine, order)
    (chunk,) = intake.accept(services.engine, run_id, order, [items(count, prefix=prefix)])
    with services.engine.begin() as connection:
        for item in chunk.items:
            row = {
                "run_id": run_id,
                "seq": item.seq,
                "tenant": tenant,
                "custom_id": f"custom-{item.seq}",
                "policy": policy,
                "callback_url": callback_url,
                "metadata": json.dumps(metadata) if metadata is not None else None,
            }
            connection.execute(_INSERT, row)
    return chunk


def judged(chunk: JudgeChunk, scores: Sequence[float | None], *, categories: tuple[str, ...] = ()) -> VerdictChunk:
    """A worker's answer with these P(unsafe); None: unparseable."""
    verdicts = [
        Verdict(seq=item.seq, outcome=Outcome.UNPARSEABLE, reason="no label")
        if score is None
        else Verdict(
            seq=item.seq,
            outcome=Outcome.SCORED,
            label=Label.UNSAFE if score > 0.5 else Label.SAFE,
            p_unsafe=score,
            label_mass=1.0,
            categories=categories if score > 0.5 else (),
        )
        for item, score in zip(chunk.items, scores, strict=True)
    ]
    return verdicts_for(chunk).model_copy(update={"verdicts": tuple(verdicts)})


def policy_of(*, name: str = "default", version: int = 1, review: float = 0.5, block: float = 0.9) -> Policy:
    """A policy with two thresholds."""
    thresholds = {"review": review, "block": block}
    return Policy.model_validate({"policy": name, "version": version, "thresholds": thresholds})


def human_labels(engine: sa.Engine, tenant: str | None, limit: int) -> list[Review]:
    """Decisions of humans, the newest first: of each item the one that counts."""
    known, of_tenant = tables.reviews, tables.submissions.c.tenant == tenant
    same = sa.and_(tables.submissions.c.run_id == known.c.run_id, tables.submissions.c.seq == known.c.seq)
    newest = sa.select(sa.func.max(known.c.id)).group_by(known.c.run_id, known.c.seq)
    items = sa.select(known.c.run_id, known.c.seq).join(tables.submissions, same).where(known.c.id.in_(newest))
    if tenant is not None:
        items = items.where(of_tenant)
    rows = fetch_all(engine, items.order_by(known.c.id.desc()).limit(limit))
    return [review_history(engine, row.run_id, row.seq)[0] for row in rows]
