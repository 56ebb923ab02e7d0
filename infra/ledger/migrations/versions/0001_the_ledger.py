"""The ledger: runs, items, chunks, verdicts and the fingerprints behind them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _moment(name: str, **options: object) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]


def _count(name: str) -> sa.Column:  # type: ignore[type-arg]
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "fingerprints", sa.Column("digest", sa.Text, primary_key=True), sa.Column("body", JSONB, nullable=False)
    )
    _create_runs()
    _create_items()
    _create_chunks()
    _create_verdicts()


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("guard", sa.Text, nullable=False),
        sa.Column("lane", sa.Text, nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("repeat", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.Text, sa.ForeignKey("fingerprints.digest")),
        _count("accepted"),
        _count("chunks"),
        sa.Column("expected", sa.BigInteger),
        *(_count(name) for name in ("settled", "scored", "unparseable", "dead", "invalid_count")),
        sa.Column("invalid_rows", JSONB, nullable=False, server_default=sa.text("'[]'")),
        sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()),
        _moment("lease_until"),
        sa.Column("report", JSONB),
        _moment("created_at", nullable=False, server_default=sa.text("now()")),
        *(_moment(name) for name in ("sealed_at", "settled_at", "completed_at")),
        sa.CheckConstraint("state IN ('open', 'sealed', 'finalizing', 'complete', 'cancelled')", name="state"),
        sa.CheckConstraint("lane IN ('live', 'bulk')", name="lane"),
        sa.CheckConstraint("settled = scored + unparseable + dead", name="outcomes"),
        sa.CheckConstraint("settled >= 0 AND settled <= accepted * repeat", name="pending"),
        sa.CheckConstraint("expected IS NULL OR expected = accepted * repeat", name="expected"),
        sa.CheckConstraint("(state = 'open') = (expected IS NULL)", name="sealed"),
        sa.CheckConstraint("state IN ('open', 'sealed') OR settled = expected", name="ended_whole"),
    )


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("item_id", sa.Text, nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("response", sa.Text, nullable=False),
        sa.Column("truth", sa.Text),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("source", "category", "subcategory")),
        sa.Column("content_hash", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("run_id", "item_id"),
    )


def _create_chunks() -> None:
    op.create_table(
        "chunks",
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("chunk_no", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("iteration", sa.Integer, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("settled", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("1")),
        _moment("enqueued_at", nullable=False, server_default=sa.text("now()")),
        _moment("overtaken_at"),
        sa.Column("wasted", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("worker", sa.Text),
        *(sa.Column(name, sa.REAL) for name in ("queue_s", "render_s", "device_s")),
        sa.CheckConstraint("settled >= 0 AND settled <= size", name="settled"),
        sa.CheckConstraint("wasted >= 0", name="wasted"),
    )
    op.create_index("ix_chunks_unsettled", "chunks", ["enqueued_at"], postgresql_where=sa.text("settled < size"))


def _create_verdicts() -> None:
    op.create_table(
        "verdicts",
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
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("prompt_tokens", "windows", "attempt")),
        sa.Column("fingerprint", sa.Text),
        _moment("settled_at", nullable=False, server_default=sa.text("now()")),
        sa.CheckConstraint("outcome IN ('scored', 'unparseable', 'dead')", name="outcome"),
        sa.CheckConstraint("(outcome = 'scored') = (label IS NOT NULL)", name="label"),
        sa.CheckConstraint("outcome <> 'dead' OR reason IS NOT NULL", name="reason"),
    )
