"""Brings a database to the ledger's present shape, or says that somebody must."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from infra.errors import ServerError

HEAD: Final = "0007"
"""Revision this code needs; a test holds it equal to the newest migration."""

_MIGRATION_LOCK: Final = 0x11B2A  # any constant that nobody else uses for a Postgres advisory lock


def upgrade(engine: sa.Engine) -> None:
    """Apply every missing migration; safe to call from many processes at once."""
    if current_revision(engine) == HEAD:
        return
    from alembic import command  # noqa: PLC0415 - 0.2 s of imports that only a migration needs
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current_revision(engine: sa.Engine) -> str | None:
    """The database's revision, or None where the ledger has never been."""
    with engine.connect() as connection:
        if connection.scalar(sa.text("SELECT to_regclass('alembic_version')")) is None:
            return None
        revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        return revision


def require_current(engine: sa.Engine) -> None:
    """Check that the ledger has the shape this code was written for.

    Raises:
        ServerError: it has not; the message says what to run.
    """
    revision = current_revision(engine)
    if revision != HEAD:
        raise ServerError(
            f"the ledger is at revision {revision or 'none'}, this version needs {HEAD}: run `libra migrate` once"
        )
