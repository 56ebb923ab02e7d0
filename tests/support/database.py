"""A Postgres database of a test's own: empty, or a copy of another."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from infra.servers.embedded import ServerUrls


@contextmanager
def fresh_database(servers: ServerUrls, *, copy_of: str = "template1") -> Iterator[str]:
    """Its URL; dropped afterwards even if connections are left open."""
    url = make_url(servers.database_url)
    name = f"test_{uuid.uuid4().hex}"
    admin = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(copy_of)))
        yield url.set(database=name).render_as_string(hide_password=False)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
