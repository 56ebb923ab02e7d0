"""Policies and what they decided, human reviews, the webhooks' outbox, and runs that have a parent."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_CURRENT = "superseded_at IS NULL"


def _moment(name: str, **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]


def _now(name: str) -> sa.Column:  # type: ignore[type-arg]
    return _moment(name, nullable=False, server_default=sa.text("now()"))


def _texts(*names: str, nullable: bool = False) -> list[sa.Column]:  # type: ignore[type-arg]
    return [sa.Column(name, sa.Text, nullable=nullable) for name in names]


def _number(name: str, **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.BigInteger, **options)  # type: ignore[arg-type]


def _identity() -> sa.Column:  # type: ignore[type-arg]
    return _number("id", server_default=sa.Identity(always=True), primary_key=True)


def upgrade() -> None:
    """Create everything."""
    op.add_column("runs", sa.Column("parent", sa.Text, sa.Computed("(spec ->> 'parent')", persisted=True)))
    op.create_index("ix_runs_parent", "runs", ["parent"], postgresql_where=sa.text("parent IS NOT NULL"))
    op.create_index("ix_submissions_tenant_created_at", "submissions", ["tenant", "created_at"], if_not_exists=True)
    _create_policies()
    _create_decisions()
    _create_reviews()
    _create_endpoints()
    _create_outbox()


def _create_policies() -> None:
    op.create_table(
        "policies",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", JSONB, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        _now("created_at"),
    )
    op.create_index("uq_policies_active", "policies", ["name"], unique=True, postgresql_where=sa.text("active"))
    op.create_table("tenant_policies", sa.Column("tenant", sa.Text, primary_key=True), *_texts("policy"))


def _create_decisions() -> None:
    op.create_table(
        "decisions",
        _identity(),
        *_texts("run_id"),
        _number("seq", nullable=False),
        sa.Column("iteration", sa.Integer, nullable=False),
        *_texts("policy"),
        sa.Column("policy_version", sa.Integer),
        *_texts("action"),
        *_texts("category", nullable=True),
        *_texts("surface", "reason"),
        _now("decided_at"),
        *(_moment(name) for name in ("superseded_at", "reviewed_at")),
        sa.CheckConstraint("action IN ('pass', 'review', 'block')", name="action"),
    )
    item = ["run_id", "seq"]
    op.create_index(
        "uq_decisions_current", "decisions", [*item, "iteration"], unique=True, postgresql_where=sa.text(_CURRENT)
    )
    op.create_index("ix_decisions_history", "decisions", item)
    waiting = sa.text(f"{_CURRENT} AND reviewed_at IS NULL AND action = 'review'")
    op.create_index("ix_decisions_review", "decisions", ["decided_at"], postgresql_where=waiting)


def _create_reviews() -> None:
    op.create_table(
        "disagreements",
        sa.Column("run_id", sa.Text, primary_key=True),
        _number("seq", primary_key=True, autoincrement=False),
        sa.Column("child_run_id", sa.Text, primary_key=True),
        _number("child_seq", nullable=False),
        _now("noted_at"),
        _moment("reviewed_at"),
    )
    op.create_index(
        "ix_disagreements_waiting", "disagreements", ["noted_at"], postgresql_where=sa.text("reviewed_at IS NULL")
    )
    op.create_table(
        "reviews",
        _identity(),
        *_texts("run_id"),
        _number("seq", nullable=False),
        *_texts("label", "action", "moderator"),
        sa.Column("note", sa.Text, nullable=False, server_default=""),
        _now("decided_at"),
        sa.CheckConstraint("label IN ('safe', 'unsafe')", name="label"),
        sa.CheckConstraint("action IN ('pass', 'block')", name="action"),
    )
    op.create_index("ix_reviews_item", "reviews", ["run_id", "seq", "id"])


def _create_endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text, primary_key=True),
        *_texts("tenant", "url"),
        *(sa.Column(name, sa.ARRAY(sa.Text), nullable=False) for name in ("secrets", "events")),
        _now("created_at"),
        *(_moment(name) for name in ("paused_until", "disabled_at")),
        *_texts("reason", nullable=True),
    )
    op.create_index("ix_webhook_endpoints_tenant", "webhook_endpoints", ["tenant"])
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("secrets", sa.ARRAY(sa.Text), nullable=False),
    )


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.Text, primary_key=True),
        *_texts("tenant"),
        *_texts("endpoint_id", "callback_url", nullable=True),
        *_texts("event", "run_id"),
        _number("seq", nullable=False),
        *_texts("body"),
        sa.Column("state", sa.Text, nullable=False, server_default="pending"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        _now("next_at"),
        sa.Column("last_status", sa.Integer),
        *_texts("last_error", nullable=True),
        _now("created_at"),
        _moment("settled_at"),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
        sa.CheckConstraint("(endpoint_id IS NULL) <> (callback_url IS NULL)", name="destination"),
    )
    op.create_index("ix_outbox_due", "outbox", ["next_at"], postgresql_where=sa.text("state = 'pending'"))
    op.create_index("ix_outbox_item", "outbox", ["run_id", "seq"])
    op.create_index("ix_outbox_tenant", "outbox", ["tenant", "created_at"])
