"""Leadership as a leased row: it ends by the ledger's clock, whatever becomes of its holder's connection."""

import sqlalchemy as sa
from alembic import op

revision = "0004_leaders"
down_revision = "0003_reports_beside_the_settling"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of leaders."""
    op.create_table(
        "leaders",
        sa.Column("role", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
    )
