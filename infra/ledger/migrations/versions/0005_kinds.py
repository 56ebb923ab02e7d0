"""Items say what they are: a kind, and the turns of a conversation before its last question and response."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005_kinds"
down_revision = "0004_leaders"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that may be null, so that no row is rewritten and an older process can still insert."""
    op.add_column("items", sa.Column("kind", sa.Text))
    op.add_column("items", sa.Column("history", JSONB))
    # NOT VALID: the rows that are there have no kind, and need not be read to see it.
    kinds = "'text', 'prompt', 'response', 'pair', 'messages'"
    op.execute(f"ALTER TABLE items ADD CONSTRAINT ck_items_kind CHECK (kind IN ({kinds})) NOT VALID")
