"""What a chunk cost its device: seconds, tokens read and written, and the device's name.

Columns without a default: nothing is rewritten, and what was judged before has no cost rather than a cost of 0.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("chunks", sa.Column("spent_s", sa.REAL))
    op.add_column("chunks", sa.Column("spent_prompt_tokens", sa.Integer))
    op.add_column("chunks", sa.Column("spent_new_tokens", sa.Integer))
    op.add_column("chunks", sa.Column("device", sa.Text))
