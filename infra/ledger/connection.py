"""Opening the ledger: one place for pool, time-outs and the error a person reads."""

from __future__ import annotations

import select
import time
from typing import Any, Final, cast

import psycopg
import sqlalchemy as sa
from psycopg.types.array import ListBinaryDumper
from sqlalchemy.exc import InvalidatePoolError, OperationalError

from infra.errors import ServerError

_RETRY_EVERY_S: Final = 0.25
_ASKED_AFTER_S: Final = 20.0
"""A connection that was used since is not asked whether its server is there: that is a round trip for each use."""


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
        connect_args={"connect_timeout": 5, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3},
    )
    sa.event.listen(engine, "connect", _send_lists_binary)
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


def disable_nested_loops(connection: sa.Connection) -> None:
    """For the queries of this transaction that join all rows of a run: never by comparing each row with each.

    Postgres knows nothing of a run that is newer than its statistics, expects one row of it, and joins by nested loop
    over the run's id alone: 43 s for 20,000 items, four times that for twice as many.
    """
    connection.execute(sa.text("SET LOCAL enable_nestloop = off"))


def _replace_dead_connections(engine: sa.Engine) -> None:
    """See that a pooled connection is alive before it is used again; a server that went away has closed its end."""

    def note_use(_: object, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's pool record
        record.info["used_at"] = time.monotonic()

    def check(connection: psycopg.Connection, record: Any, _: object) -> None:  # noqa: ANN401
        used_at = record.info.get("used_at")
        if used_at is None or (time.monotonic() < used_at + _ASKED_AFTER_S and _is_silent(connection)):
            return
        try:
            engine.dialect.do_ping(cast("Any", connection))
        except psycopg.Error as error:
            raise InvalidatePoolError from error

    sa.event.listen(engine, "checkin", note_use)
    sa.event.listen(engine, "checkout", check)


def _is_silent(connection: psycopg.Connection) -> bool:
    """Whether the server has sent nothing unasked: its last words, or the end of the stream."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return not poll.poll(0)


def _send_lists_binary(connection: psycopg.Connection, _: object) -> None:
    """Arrays in binary form: for the text form psycopg looks for quotes in every text, ten times the work."""
    connection.adapters.register_dumper(list, ListBinaryDumper)


def _parse(database_url: str) -> sa.URL:
    try:
        url = sa.make_url(database_url)
    except sa.exc.ArgumentError as error:
        raise ServerError("LIBRA_DATABASE_URL is not a database URL (postgresql://user:password@host/name)") from error
    if not url.drivername.startswith("postgresql"):
        raise ServerError(f"LIBRA_DATABASE_URL names {url.drivername}; the ledger needs Postgres")
    return url.set(drivername="postgresql+psycopg")
