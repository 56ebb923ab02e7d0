"""A claim on a run's report has a token and is counted; the pages of runs leave room for new versions of their rows."""

from alembic import op

revision = "0003_reports_beside_the_settling"
down_revision = "0002_nonces_and_ordinals"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add to `runs`; no row is written."""
    op.execute(
        """
        ALTER TABLE runs ADD COLUMN finalize_token text,
                         ADD COLUMN finalize_attempts integer NOT NULL DEFAULT 0,
                         SET (fillfactor = 10)
        """
    )
