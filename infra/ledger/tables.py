"""The ledger's tables. Their invariants are constraints wherever SQL can hold them.

`accepted * repeat = settled + pending` needs no column of its own: pending is the difference, and the
checks below forbid it to go negative or the outcome counts to drift from `settled`.

Items and verdicts carry no foreign key to their run: every statement that writes them updates the run's
counters in the same transaction, so the run is there, and a check per row would cost more than the row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from schemas.access import Role
from schemas.items import Kind, Label
from schemas.policy import Action
from schemas.runs import RunState
from schemas.verdicts import Outcome

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

_NOW: Final = sa.text("now()")
_ZERO: Final = sa.text("0")
_BY_MONTH: Final = "RANGE (run_id)"
"""A run's id begins with its month: `infra.ledger.months`."""


def _one_of(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


fingerprints: Final = sa.Table(
    "fingerprints",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("body", JSONB, nullable=False),
)

runs: Final = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("guard", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, sa.ForeignKey("fingerprints.digest")),
    sa.Column("accepted", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("chunks", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("expected", sa.BigInteger),
    sa.Column("settled", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("scored", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("unparseable", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("dead", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("invalid_count", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("invalid_rows", JSONB, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("lease_until", sa.DateTime(timezone=True)),
    sa.Column("finalize_token", sa.Text),
    sa.Column("finalize_attempts", sa.Integer, nullable=False, server_default=_ZERO),
    sa.Column("report", JSONB),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("sealed_at", sa.DateTime(timezone=True)),
    sa.Column("settled_at", sa.DateTime(timezone=True)),
    sa.Column("completed_at", sa.DateTime(timezone=True)),
    sa.Column("parent", sa.Text, sa.Computed("(spec ->> 'parent')", persisted=True)),
    sa.CheckConstraint(_one_of("state", RunState), name="state"),
    sa.CheckConstraint("lane IN ('live', 'bulk')", name="lane"),
    sa.CheckConstraint("settled = scored + unparseable + dead", name="outcomes"),
    sa.CheckConstraint("settled >= 0 AND settled <= accepted * repeat", name="pending"),
    sa.CheckConstraint("expected IS NULL OR expected = accepted * repeat", name="expected"),
    sa.CheckConstraint("(state = 'open') = (expected IS NULL)", name="sealed"),
    sa.CheckConstraint("state IN ('open', 'sealed') OR settled = expected", name="ended_whole"),
    postgresql_with={"fillfactor": 10},  # the counters change with every chunk: room for new versions in the same page
)

sa.Index("ix_runs_parent", runs.c.parent, postgresql_where=runs.c.parent.is_not(None))

items: Final = sa.Table(
    "items",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("truth", sa.Text),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("subcategory", sa.Text, nullable=False),
    sa.Column("content_hash", sa.LargeBinary, nullable=False),
    # Null in rows that are older than kinds: a pair, or a text where the question is empty.
    sa.Column("kind", sa.Text),
    sa.Column("history", JSONB),
    sa.CheckConstraint(_one_of("kind", Kind), name="kind"),
    sa.UniqueConstraint("run_id", "item_id"),
    postgresql_partition_by=_BY_MONTH,
)

chunk_ordinals: Final = sa.Sequence("chunk_ordinals", metadata=metadata)
"""Counts what is enqueued, over all lanes: within each lane the order that the reconciler's watermark compares."""

chunks: Final = sa.Table(
    "chunks",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("chunk_no", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("iteration", sa.Integer, nullable=False),
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("settled", sa.Integer, nullable=False, server_default=_ZERO),
    sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("enqueued_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("overtaken_at", sa.DateTime(timezone=True)),
    sa.Column("wasted", sa.Integer, nullable=False, server_default=_ZERO),
    sa.Column("worker", sa.Text),
    sa.Column("queue_s", sa.REAL),
    sa.Column("render_s", sa.REAL),
    sa.Column("device_s", sa.REAL),
    sa.Column("spent_s", sa.REAL),
    sa.Column("spent_prompt_tokens", sa.Integer),
    sa.Column("spent_new_tokens", sa.Integer),
    sa.Column("device", sa.Text),
    # Null in rows that are older than these columns. `nonce` is random; `judged_nonce` came with the verdicts.
    sa.Column("nonce", sa.Text),
    sa.Column("judged_nonce", sa.Text),
    sa.Column("ordinal", sa.BigInteger, server_default=chunk_ordinals.next_value()),
    sa.CheckConstraint("settled >= 0 AND settled <= size", name="settled"),
    sa.CheckConstraint("wasted >= 0", name="wasted"),
)
sa.Index("ix_chunks_unsettled", chunks.c.enqueued_at, postgresql_where=chunks.c.settled < chunks.c.size)

verdicts: Final = sa.Table(
    "verdicts",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("iteration", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("label", sa.Text),
    sa.Column("p_unsafe", sa.Double),
    sa.Column("label_mass", sa.Double),
    sa.Column("categories", sa.Text, nullable=False, server_default=""),
    sa.Column("reason", sa.Text),
    sa.Column("raw", sa.Text),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text),
    sa.Column("settled_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("cached", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("categories_by", sa.Text),
    sa.CheckConstraint(_one_of("outcome", Outcome), name="outcome"),
    sa.CheckConstraint("(outcome = 'scored') = (label IS NOT NULL)", name="label"),
    sa.CheckConstraint("outcome <> 'dead' OR reason IS NOT NULL", name="reason"),
    postgresql_partition_by=_BY_MONTH,
)

sa.Index("ix_verdicts_settled_at", verdicts.c.settled_at, postgresql_using="brin")

api_keys: Final = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("revoked_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint(_one_of("role", Role), name="role"),
)

submissions: Final = sa.Table(
    "submissions",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("custom_id", sa.Text),
    sa.Column("policy", sa.Text),
    sa.Column("callback_url", sa.Text),
    sa.Column("metadata", JSONB),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    postgresql_partition_by=_BY_MONTH,
)
sa.Index("ix_submissions_tenant_created_at", submissions.c.tenant, submissions.c.created_at)

policies: Final = sa.Table(
    "policies",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", JSONB, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
)
sa.Index("uq_policies_active", policies.c.name, unique=True, postgresql_where=policies.c.active)

tenant_policies: Final = sa.Table(
    "tenant_policies",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
)

decisions: Final = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("iteration", sa.Integer, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("policy_version", sa.Integer),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("category", sa.Text),
    sa.Column("surface", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("superseded_at", sa.DateTime(timezone=True)),
    sa.Column("reviewed_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint(_one_of("action", Action), name="action"),
)
_CURRENT: Final = decisions.c.superseded_at.is_(None)
sa.Index(
    "uq_decisions_current",
    *(decisions.c.run_id, decisions.c.seq, decisions.c.iteration),
    unique=True,
    postgresql_where=_CURRENT,
)
sa.Index("ix_decisions_history", decisions.c.run_id, decisions.c.seq)
sa.Index(
    "ix_decisions_review",
    decisions.c.decided_at,
    postgresql_where=sa.and_(
        _CURRENT, decisions.c.reviewed_at.is_(None), decisions.c.action == sa.literal_column("'review'")
    ),
)

disagreements: Final = sa.Table(
    "disagreements",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("child_run_id", sa.Text, primary_key=True),
    sa.Column("child_seq", sa.BigInteger, nullable=False),
    sa.Column("noted_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("reviewed_at", sa.DateTime(timezone=True)),
)
sa.Index("ix_disagreements_waiting", disagreements.c.noted_at, postgresql_where=disagreements.c.reviewed_at.is_(None))

reviews: Final = sa.Table(
    "reviews",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("moderator", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.CheckConstraint(_one_of("label", Label), name="label"),
    sa.CheckConstraint("action IN ('pass', 'block')", name="action"),
)
sa.Index("ix_reviews_item", reviews.c.run_id, reviews.c.seq, reviews.c.id)

webhook_endpoints: Final = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secrets", sa.ARRAY(sa.Text), nullable=False),
    sa.Column("events", sa.ARRAY(sa.Text), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("paused_until", sa.DateTime(timezone=True)),
    sa.Column("disabled_at", sa.DateTime(timezone=True)),
    sa.Column("reason", sa.Text),
)
sa.Index("ix_webhook_endpoints_tenant", webhook_endpoints.c.tenant)

webhook_secrets: Final = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("secrets", sa.ARRAY(sa.Text), nullable=False),
)

outbox: Final = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("endpoint_id", sa.Text),
    sa.Column("callback_url", sa.Text),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=_ZERO),
    sa.Column("next_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("last_status", sa.Integer),
    sa.Column("last_error", sa.Text),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    sa.Column("settled_at", sa.DateTime(timezone=True)),
    sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
    sa.CheckConstraint("(endpoint_id IS NULL) <> (callback_url IS NULL)", name="destination"),
)
sa.Index("ix_outbox_due", outbox.c.next_at, postgresql_where=outbox.c.state == sa.literal_column("'pending'"))
sa.Index("ix_outbox_item", outbox.c.run_id, outbox.c.seq)
sa.Index("ix_outbox_tenant", outbox.c.tenant, outbox.c.created_at)

feeds: Final = sa.Table(
    "feeds",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("last_n", sa.BigInteger, nullable=False),
)

feed_entries: Final = sa.Table(
    "feed_entries",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("n", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
)
sa.Index("ix_feed_entries_run_id_seq", feed_entries.c.run_id, feed_entries.c.seq, unique=True)

idempotency_keys: Final = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("made", JSONB, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
)
sa.Index("ix_idempotency_keys_created_at", idempotency_keys.c.created_at)

files: Final = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
)

batches: Final = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("input_file_id", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("metadata", JSONB),
    sa.Column("run_id", sa.Text),
    sa.Column("errors", JSONB),
    sa.Column("cancelling_at", sa.DateTime(timezone=True)),
    sa.Column("failed_at", sa.DateTime(timezone=True)),
    sa.Column("submitted_at", sa.DateTime(timezone=True)),
    sa.Column("lease_until", sa.DateTime(timezone=True)),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
)
sa.Index(
    "ix_batches_waiting",
    batches.c.created_at,
    postgresql_where=sa.and_(batches.c.submitted_at.is_(None), batches.c.failed_at.is_(None)),
)

leaders: Final = sa.Table(
    "leaders",
    metadata,
    sa.Column("role", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
)
