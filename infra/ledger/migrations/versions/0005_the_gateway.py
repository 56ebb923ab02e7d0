"""The gateway: API keys, the feed of verdicts, idempotency keys, files and batches."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _text(name: str, **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.Text, **options)  # type: ignore[arg-type]


def _moment(name: str) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.DateTime(timezone=True))


def _created() -> sa.Column:  # type: ignore[type-arg]
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()"))


def _bytes(name: str, **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.LargeBinary, nullable=False, **options)  # type: ignore[arg-type]


def _number(name: str, **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.BigInteger, **options)  # type: ignore[arg-type]


def upgrade() -> None:
    """Create the gateway's tables."""
    op.create_table(
        "api_keys",
        _text("id", primary_key=True),
        _bytes("digest", unique=True),
        *(_text(name, nullable=False) for name in ("tenant", "role")),
        _text("note", nullable=False, server_default=""),
        _created(),
        _moment("revoked_at"),
        sa.CheckConstraint("role IN ('service', 'viewer', 'moderator', 'admin')", name="role"),
    )
    _create_feed()
    op.create_table(
        "idempotency_keys",
        *(_text(name, primary_key=True) for name in ("tenant", "key")),
        _bytes("request_hash"),
        sa.Column("made", JSONB, nullable=False),
        _created(),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    _create_batches()


def _create_feed() -> None:
    op.create_table("feeds", _text("tenant", primary_key=True), _number("last_n", nullable=False))
    op.create_table(
        "feed_entries",
        _text("tenant", primary_key=True),
        _number("n", primary_key=True, autoincrement=False),
        _text("run_id", nullable=False),
        _number("seq", nullable=False),
    )
    op.create_index("ix_feed_entries_run_id_seq", "feed_entries", ["run_id", "seq"], unique=True)


def _create_batches() -> None:
    op.create_table(
        "files",
        _text("id", primary_key=True),
        *(_text(name, nullable=False) for name in ("tenant", "filename", "purpose")),
        _bytes("content"),
        _created(),
    )
    op.create_table(
        "batches",
        _text("id", primary_key=True),
        *(_text(name, nullable=False) for name in ("tenant", "input_file_id", "endpoint")),
        sa.Column("metadata", JSONB),
        _text("run_id"),
        sa.Column("errors", JSONB),
        *(_moment(name) for name in ("cancelling_at", "failed_at", "submitted_at", "lease_until")),
        _created(),
    )
    waiting = sa.text("submitted_at IS NULL AND failed_at IS NULL")
    op.create_index("ix_batches_waiting", "batches", ["created_at"], postgresql_where=waiting)
