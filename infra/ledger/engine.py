"""The engine: how the ledger is opened, how its statements run, and how its schema is brought up to date."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import psycopg
import sqlalchemy as sa
from psycopg.types.array import ListBinaryDumper
from sqlalchemy.exc import InvalidatePoolError, OperationalError

from infra.errors import LedgerOutdatedError, ServerError
from infra.ledger import months
from infra.ledger.address import parse_postgres as _parse
from infra.ledger.faults import conceal_values, describe
from infra.ledger.text import clean_json, register_clean_text
from infra.log import get_logger

HEAD: Final = "0007_how_categories_were_named"
"""Revision this code needs; a test holds it equal to the newest migration."""

_RETRY_EVERY_S: Final = 0.25
_PING_AFTER_S: Final = 20.0
"""A connection used since is not pinged: that is a round trip for each use."""
_FETCH: Final = 2_000
"""Rows that a stream asks the server for at a time."""
_MIGRATION_LOCK: Final = 0x11B2A  # any constant that nothing else uses for a Postgres advisory lock

log = get_logger(__name__)

Values = Mapping[str, Any]
Row = sa.Row[*tuple[Any, ...]]


def named(kind: type[Any], row: Row) -> dict[str, Any]:
    """The columns of a row that a named tuple has fields for."""
    return {name: row._mapping[name] for name in kind._fields if name in row._mapping}


class Limits(NamedTuple):
    """How long a session may keep others waiting, in seconds; each is a setting, with its reason in `infra.settings`.

    `long_statement_s` and `stream_idle_s` hold in transactions that read or change a whole run.
    """

    lock_s: float = 5.0
    statement_s: float = 60.0
    idle_s: float = 10.0
    long_statement_s: float = 3_600.0
    stream_idle_s: float = 600.0
    peer_s: float = 15.0


def open_ledger(database_url: str, *, pool_size: int = 4, wait_s: float = 0, limits: Limits | None = None) -> sa.Engine:
    """An engine on the ledger's database that has answered once; each of its sessions has time limits.

    Raises:
        ServerError: no answer within `wait_s` seconds, or no Postgres URL.
    """
    limits, url = limits or Limits(), _parse(database_url)
    at_start = True
    engine = _engine(url, pool_size, limits, at_start=at_start)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with engine.connect():
                return engine
        except OperationalError as error:
            reason = describe(error)
            if not at_start and "startup parameter" in reason:
                where = url.render_as_string(hide_password=True)
                raise ServerError(f"the pooler at {where} refuses what the URL itself asks for: {reason}") from error
            if at_start and "startup parameter" in reason:
                # A pooler, which shares its sessions among clients: the limits go with each transaction instead.
                log.warning("ledger_behind_pooler", error=reason)
                at_start = False
                engine = _engine(url, pool_size, limits, at_start=at_start)
                continue
            if time.monotonic() >= deadline:
                where = url.render_as_string(hide_password=True)
                raise ServerError(f"cannot reach Postgres at {where}: {reason}") from error
            time.sleep(_RETRY_EVERY_S)


def _engine(url: sa.URL, pool_size: int, limits: Limits, *, at_start: bool) -> sa.Engine:
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=2,
        hide_parameters=True,  # an error's text goes to logs, and parameters are user text
        json_serializer=clean_json,
        connect_args=_connect_args(url, limits, at_start=at_start),
        execution_options={"limits": limits},
    )
    sa.event.listen(engine, "connect", _adapt)
    conceal_values(engine)
    _replace_dead_connections(engine)
    if not at_start:
        sa.event.listen(engine, "begin", _limit_transaction)
    return engine


def _adapt(made: psycopg.Connection, _: object) -> None:
    # Arrays in binary form: for the text form psycopg looks for quotes in every text, ten times the work.
    made.adapters.register_dumper(list, ListBinaryDumper)
    register_clean_text(made)


def _connect_args(url: sa.URL, limits: Limits, *, at_start: bool) -> dict[str, str | int]:
    """What libpq and the server get at the start of a connection; what the URL says itself goes first."""
    probe_s = max(1, int(limits.peer_s / 3))
    probing = {"keepalives_idle": probe_s, "keepalives_interval": probe_s, "keepalives_count": 2}
    args = {"connect_timeout": 5, "tcp_user_timeout": int(1_000 * limits.peer_s), **probing}
    own: dict[str, str | int] = {name: value for name, value in args.items() if name not in url.query}
    if at_start:
        server = {**{f"tcp_{name}": value for name, value in probing.items()}, **_server_limits(limits)}
        server["tcp_user_timeout"] = args["tcp_user_timeout"]
        theirs = url.query.get("options", "")
        options = [f"-c {name}={value}" for name, value in server.items()]
        own["options"] = " ".join([*options, theirs if isinstance(theirs, str) else " ".join(theirs)]).strip()
    return own


def _server_limits(limits: Limits) -> dict[str, int]:
    """Postgres' settings that bound a session, in milliseconds."""
    return {
        "lock_timeout": int(1_000 * limits.lock_s),
        "statement_timeout": int(1_000 * limits.statement_s),
        "idle_in_transaction_session_timeout": int(1_000 * limits.idle_s),
    }


def _set_locally(connection: sa.Connection, values: Mapping[str, object]) -> None:
    """Change settings for the rest of this transaction, in one round trip."""
    calls = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in values.items())
    connection.execute(sa.text(f"SELECT {calls}"))


def _limit_transaction(connection: sa.Connection) -> None:
    if connection.get_isolation_level() != "AUTOCOMMIT":
        _set_locally(connection, _server_limits(_limits_of(connection)))


def _limits_of(connection: sa.Connection) -> Limits:
    return connection.get_execution_options().get("limits") or Limits()


def take_long(connection: sa.Connection, *, streamed: bool = False, whole_run: bool = False) -> None:
    """Let this transaction's statements take long: they read or change a run of any size.

    With `streamed` it may be idle as well, at the pace of who reads it; it must lock nothing.

    With `whole_run` all rows of a run are not joined by nested loop. Postgres knows nothing of a run that is newer
    than its statistics, expects one row of it, and joins by nested loop over the run's id alone: 43 s for 20,000
    items, four times that for twice as many. ANALYZE when a run is sealed does not help: most of its verdicts come
    later, and live runs are never sealed.
    """
    limits = _limits_of(connection)
    values: dict[str, object] = {"statement_timeout": int(1_000 * limits.long_statement_s)}
    if streamed:
        values["idle_in_transaction_session_timeout"] = int(1_000 * limits.stream_idle_s)
    if whole_run:
        values["enable_nestloop"] = "off"
    _set_locally(connection, values)


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
        take_long(connection, streamed=True, whole_run=whole_run)
        yield from connection.execution_options(yield_per=_FETCH).execute(statement, values)


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
            _set_locally(connection, dict.fromkeys(_server_limits(Limits()), 0))  # others wait for it as long
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            months.provide(connection)
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
