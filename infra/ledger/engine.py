"""The engine: how the ledger is opened, how its statements run, and how its schema is brought up to date."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import psycopg
import sqlalchemy as sa
from psycopg.types.array import ListBinaryDumper
from sqlalchemy.exc import InvalidatePoolError, OperationalError

from infra.errors import LedgerOutdatedError, ServerError
from infra.ledger.address import parse_postgres as _parse

HEAD: Final = "0004_reports_beside_the_settling"
"""Revision this code needs; a test holds it equal to the newest migration."""

_RETRY_EVERY_S: Final = 0.25
_PING_AFTER_S: Final = 20.0
"""A connection used since is not pinged: that is a round trip for each use."""
_FETCH: Final = 2_000
"""Rows that a stream asks the server for at a time."""
_MIGRATION_LOCK: Final = 0x11B2A  # any constant that nothing else uses for a Postgres advisory lock

Values = Mapping[str, Any]
Row = sa.Row[*tuple[Any, ...]]


def named(kind: type[Any], row: Row) -> dict[str, Any]:
    """The columns of a row that a named tuple has fields for."""
    return {name: row._mapping[name] for name in kind._fields if name in row._mapping}


def open_ledger(database_url: str, *, pool_size: int = 4, wait_s: float = 0) -> sa.Engine:
    """An engine on the ledger's database that has answered once.

    Raises:
        ServerError: no answer within `wait_s` seconds, or no Postgres URL.
    """
    url = _parse(database_url)
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=2,
        hide_parameters=True,  # an error's text goes to logs, and parameters are user text
        connect_args={"connect_timeout": 5, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3},
    )
    # Arrays in binary form: for the text form psycopg looks for quotes in every text, ten times the work.
    sa.event.listen(engine, "connect", lambda made, _: made.adapters.register_dumper(list, ListBinaryDumper))
    _replace_dead_connections(engine)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with engine.connect():
                return engine
        except OperationalError as error:
            if time.monotonic() >= deadline:
                reason = str(error.orig).strip().splitlines()[0]
                where = url.render_as_string(hide_password=True)
                raise ServerError(f"cannot reach Postgres at {where}: {reason}") from error
            time.sleep(_RETRY_EVERY_S)


def autocommit(engine: sa.Engine) -> sa.Connection:
    """A connection for statements that are each a transaction of their own.

    Saves BEGIN and COMMIT, a round trip each; and the ROLLBACK after a read makes psycopg drop its prepared statements.
    """
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def fetch_all(engine: sa.Engine, statement: sa.Executable, values: Values | None = None) -> Sequence[Row]:
    """All rows of one statement, run in autocommit."""
    with autocommit(engine) as connection:
        return connection.execute(statement, values).all()


def fetch_one(engine: sa.Engine, statement: sa.Executable, values: Values | None = None) -> Row | None:
    """The only row of one statement, or None where it has none; run in autocommit."""
    with autocommit(engine) as connection:
        return connection.execute(statement, values).one_or_none()


def fetch_value(engine: sa.Engine, statement: sa.Executable, values: Values | None = None) -> Any:  # noqa: ANN401 - of any column
    """The first column of one statement's first row, or None where it has none; run in autocommit."""
    with autocommit(engine) as connection:
        return connection.scalar(statement, values)


def execute(engine: sa.Engine, statement: sa.Executable, values: Values | None = None) -> int:
    """Run one changing statement in autocommit; returns how many rows it touched."""
    with autocommit(engine) as connection:
        return connection.execute(statement, values, execution_options={"preserve_rowcount": True}).rowcount


def stream(
    engine: sa.Engine, statement: sa.Executable, values: Values | None = None, *, whole_run: bool = False
) -> Iterator[Row]:
    """The rows of one statement, fetched as they are asked for; `whole_run`: it joins all rows of a run."""
    with engine.begin() as connection:  # a server-side cursor lives in a transaction
        if whole_run:
            disable_nested_loops(connection)
        yield from connection.execution_options(yield_per=_FETCH).execute(statement, values)


def disable_nested_loops(connection: sa.Connection) -> None:
    """Keep this transaction from joining all rows of a run by nested loop.

    Postgres knows nothing of a run that is newer than its statistics, expects one row of it, and joins by nested loop
    over the run's id alone: 43 s for 20,000 items, four times that for twice as many. ANALYZE when a run is sealed does
    not help: most of its verdicts come later, and live runs are never sealed.
    """
    connection.execute(sa.text("SET LOCAL enable_nestloop = off"))


def ledger_now(engine: sa.Engine) -> float:
    """The ledger's clock, epoch seconds: the one that chunks are stamped by."""
    return float(fetch_value(engine, NOW))


NOW: Final = sa.text("SELECT extract(epoch FROM clock_timestamp())::float8")
"""The ledger's clock, epoch seconds, not frozen by the transaction."""


def upgrade(engine: sa.Engine) -> None:
    """Apply every missing migration; safe to call from many processes at once.

    Raises:
        LedgerOutdatedError: the database is at a revision of another line of versions.
    """
    if (found := current_revision(engine)) == HEAD:
        return
    from alembic import command  # noqa: PLC0415 - 0.2 s of imports that only a migration needs
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise LedgerOutdatedError(f"no way from the ledger's revision {found} to {HEAD}") from error


def current_revision(engine: sa.Engine) -> str | None:
    """The database's revision, or None where the ledger has never been."""
    if fetch_value(engine, sa.text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = fetch_value(engine, sa.text("SELECT version_num FROM alembic_version"))
    return revision


def require_current(engine: sa.Engine) -> None:
    """Check that the ledger has the shape this code was written for.

    Raises:
        LedgerOutdatedError: it has not.
    """
    revision = current_revision(engine)
    if revision != HEAD:
        raise LedgerOutdatedError(f"the ledger is at revision {revision or 'none'}, this version needs {HEAD}")


def _find_pooler(made: psycopg.Connection, _: object) -> None:
    """Prepare no statement where a pooler stands between: the next transaction may be another server process's.

    A pooler gives its clients keys of its own, so that what it calls the server process is not what that is.
    """
    row = made.execute("SELECT pg_backend_pid()").fetchone()
    made.rollback()
    if row is None or row[0] != made.info.backend_pid:
        made.prepare_threshold = None


def _replace_dead_connections(engine: sa.Engine) -> None:
    """See that a pooled connection is alive before it is used again; a server that went away has closed its end."""

    def note_use(_: object, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's pool record
        record.info["used_at"] = time.monotonic()

    def check(connection: psycopg.Connection, record: Any, _: object) -> None:  # noqa: ANN401
        used_at = record.info.get("used_at")
        if used_at is None:
            return
        if time.monotonic() < used_at + _PING_AFTER_S and not connection.closed:
            poll = select.poll()
            poll.register(connection.pgconn.socket, select.POLLIN)
            if not poll.poll(0):  # nothing came unasked: neither the server's last words nor the end of the stream
                return
        try:
            engine.dialect.do_ping(cast("Any", connection))
        except psycopg.Error as error:
            raise InvalidatePoolError from error

    sa.event.listen(engine, "connect", _find_pooler)
    sa.event.listen(engine, "checkin", note_use)
    sa.event.listen(engine, "checkout", check)
