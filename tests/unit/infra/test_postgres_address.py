"""Postgres' address in every form that people are given; what is wrong is named, and no password is shown."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest

from infra.errors import ServerError
from infra.ledger.address import parse_postgres


def told(database_url: str) -> dict[str, Any]:
    """What libpq is told."""
    url = parse_postgres(database_url)
    plain = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
    return {name: value for name, value in {**plain, "dbname": url.database, **url.query}.items() if value is not None}


ACCOUNT = {"user": "me", "password": "word", "dbname": "db"}


@pytest.mark.parametrize(
    ("database_url", "expected"),
    [
        ("postgres://me:word@host/db", {"host": "host", **ACCOUNT}),
        ("postgresql://me:word@host:5433/db", {"host": "host", "port": 5433, **ACCOUNT}),
        ("postgresql+psycopg://me:word@host/db", {"host": "host", **ACCOUNT}),
        ("postgresql+asyncpg://me:word@host/db?ssl=true", {"host": "host", "sslmode": "require", **ACCOUNT}),
        ("postgresql://me:word@host/db?sslmode=verify-full", {"host": "host", "sslmode": "verify-full", **ACCOUNT}),
        ("jdbc:postgresql://host/db?user=me&password=word", {"host": "host", **ACCOUNT}),
        ("postgres://me:word@host/db?pgbouncer=true&connection_limit=1&schema=public", {"host": "host", **ACCOUNT}),
        ("postgres://me:word@host/db?schema=own", {"host": "host", "options": "-csearch_path=own", **ACCOUNT}),
        ("postgres://me:word@host/db?statement_cache_size=0", {"host": "host", **ACCOUNT}),
        ("postgresql://me:word@[::1]:5433/db", {"host": "::1", "port": 5433, **ACCOUNT}),
        (
            "postgresql://me:word@a:1,b:2/db?target_session_attrs=read-write",
            {"host": "a,b", "port": "1,2", "target_session_attrs": "read-write", **ACCOUNT},
        ),
        ("postgresql://me:word@/db?host=/run/pg", {"host": "/run/pg", **ACCOUNT}),
        ("postgresql://me:word@%2Frun%2Fpg/db", {"host": "/run/pg", **ACCOUNT}),
        ("host=host dbname=db user=me password=word", {"host": "host", **ACCOUNT}),
        ("postgres://me:p%40ss%2Fw%23rd%3F%3A@host/db", {"host": "host", **ACCOUNT, "password": "p@ss/w#rd?:"}),
    ],
)
def test_every_form_that_libpq_other_drivers_and_clouds_write_is_read(
    database_url: str, expected: dict[str, Any]
) -> None:
    assert told(database_url) == expected


@pytest.mark.parametrize(
    ("database_url", "said"),
    [
        ("mysql://me@host/db", "not a Postgres URL"),
        ("", "not a Postgres URL"),
        ("postgres://me@host/db?pool_size=3", "'pool_size'"),
        ("postgres://me@host:port/db", "port is not a number"),
    ],
)
def test_an_address_that_cannot_be_is_refused_in_one_line_that_names_what_is_wrong(
    database_url: str, said: str
) -> None:
    with pytest.raises(ServerError, match=re.escape(said)) as refused:
        parse_postgres(database_url)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("special", "/#?@: %&=")
def test_a_password_that_is_not_encoded_is_read_as_it_is_or_refused_and_shown_in_no_part(special: str) -> None:
    address = f"postgres://me:sec{special}ret=1@host:5432/db"
    with suppress(ServerError):
        assert parse_postgres(address).password == f"sec{special}ret=1"
        return
    with pytest.raises(ServerError, match="percent-encoded") as refused:
        parse_postgres(address)
    assert not re.search("sec|ret", str(refused.value))
