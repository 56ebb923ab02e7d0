"""What settled lately is found without reading every verdict: the console counts it.

Verdicts are appended in the order of settling, so that a block-range index of a few kilobytes does.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_verdicts_settled_at", "verdicts", ["settled_at"], postgresql_using="brin")
