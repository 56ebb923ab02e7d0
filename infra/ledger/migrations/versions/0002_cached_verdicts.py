"""Verdicts say whether they came from the cache.

A column with a constant default: Postgres rewrites no row for it, and a collector that does not know it goes on.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the mark; what was judged before it was judged by a device."""
    op.add_column("verdicts", sa.Column("cached", sa.Boolean, nullable=False, server_default=sa.false()))
