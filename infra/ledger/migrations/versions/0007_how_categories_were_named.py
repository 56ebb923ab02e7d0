"""A verdict says how its categories were obtained."""

import sqlalchemy as sa
from alembic import op

revision = "0007_how_categories_were_named"
down_revision = "0006_months"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that may be null, so that no row is rewritten and an older collector can still insert."""
    op.add_column("verdicts", sa.Column("categories_by", sa.Text))
