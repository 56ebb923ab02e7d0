"""Opening the ledger: one place for pool, time-outs and the error a person reads."""

from __future__ import annotations

import time
from typing import Final

import psycopg
import sqlalchemy as sa
from psycopg.types.array import ListBinaryDumper
from sqlalchemy.exc import OperationalError

from infra.errors import ServerError

_RETRY_EVERY_S: Final = 0.25


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
        pool_pre_ping=True,
        connect_args={"connect_timeout": 5, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3},
    )
    sa.event.listen(engine, "connect", _send_lists_binary)
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


def expect_whole_runs(connection: sa.Connection) -> None:
    """For the queries of this transaction that join all rows of a run: never by comparing each row with each.

    Postgres knows nothing of a run that is newer than its statistics, expects one row of it, and joins by nested loop
    over the run's id alone: 43 s for 20,000 items, four times that for twice as many.
    """
    connection.execute(sa.text("SET LOCAL enable_nestloop = off"))


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
