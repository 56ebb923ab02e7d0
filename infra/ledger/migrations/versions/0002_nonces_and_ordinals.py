"""Chunks get a nonce and an ordinal: lost commits are told apart, and the watermark needs no clock.

Older processes go on: they write no nonce, and the ordinal is a default.
"""

from alembic import op

revision = "0002_nonces_and_ordinals"
down_revision = "0001_baseline"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns without a default first, so that no row is written again; then the default for what comes."""
    op.execute("CREATE SEQUENCE chunk_ordinals")
    op.execute("ALTER TABLE chunks ADD nonce TEXT, ADD judged_nonce TEXT, ADD ordinal BIGINT")
    op.execute("ALTER TABLE chunks ALTER ordinal SET DEFAULT nextval('chunk_ordinals')")
