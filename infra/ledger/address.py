"""Postgres' address as people have it: what libpq reads, and what other drivers and the clouds write.

An error names the parameter that is wrong, and never shows the address itself: it holds a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import sqlalchemy as sa
from psycopg import conninfo, pq

from infra.errors import ServerError

FORM: Final = "postgresql://user:password@host:5432/name"
ENCODE: Final = (
    "a password's special characters are written percent-encoded (/ as %2F, # as %23, ? as %3F, @ as %40, : as %3A)"
)
_SCHEME: Final = re.compile(r"(jdbc:)?(postgres|postgresql|psql)(\+\w+)?://")
_KNOWN: Final = frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())
"""Every parameter of libpq as it is installed here."""


class _Meant(NamedTuple):
    """A parameter of another driver in libpq's words; without a name, or with an empty value, it says nothing to us."""

    name: str = ""
    value: Callable[[str], str] = str


def _ssl(value: str) -> str:
    plain = value.lower().replace("_", "-")
    return {"true": "require", "1": "require", "false": "disable", "0": "disable", "no-verify": "require"}.get(
        plain, plain
    )


def _search_path(schema: str) -> str:
    return "" if schema == "public" else f"-csearch_path={schema}"


_OTHERS: Final[Mapping[str, _Meant]] = {
    "ssl": _Meant("sslmode", _ssl),
    "schema": _Meant("options", _search_path),
    "currentSchema": _Meant("options", _search_path),
    "search_path": _Meant("options", _search_path),
    "ApplicationName": _Meant("application_name"),
    "username": _Meant("user"),
    "database": _Meant("dbname"),
    **dict.fromkeys(("pgbouncer", "prepareThreshold", "prepare_threshold", "prepared_statements"), _Meant()),
    **dict.fromkeys(("statement_cache_size", "prepared_statement_cache_size"), _Meant()),
    **dict.fromkeys(("connection_limit", "pool_timeout", "socket_timeout", "uselibpqcompat", "supa"), _Meant()),
}
"""Prisma's, asyncpg's, JDBC's, Rails', node-postgres' and Supabase's. A pooler is found out by itself (`infra.ledger.
engine`); sizes and time-outs of other drivers' pools are not ours."""


def parse_postgres(database_url: str) -> sa.URL:
    """Read an address.

    Raises:
        ServerError: it is none; the message says what to change, and shows nothing of it but the parameter's name.
    """
    text = database_url.strip()
    found = _SCHEME.match(text)
    if found:
        given = _of_url(text[found.end() :])
    elif "=" in text and "://" not in text:
        given = _of_words(text)
    else:
        raise ServerError(f"LIBRA_DATABASE_URL is not a Postgres URL ({FORM})")
    parameters: dict[str, str] = {}
    for name, value in given:
        meant = _meaning(name)
        wanted = meant.value(value)
        if meant.name == "options" and "options" in parameters:
            wanted = f"{parameters['options']} {wanted}".strip()
        if meant.name and wanted:
            parameters[meant.name] = wanted
    if parameters.get("sslmode") == "no-verify":
        parameters["sslmode"] = "require"
    if "," not in parameters.get("port", ""):
        _check_port(parameters.get("port", "5432"))
    return _url(parameters)


def _meaning(name: str) -> _Meant:
    if name in _KNOWN:
        return _Meant(name)
    if name in _OTHERS:
        return _OTHERS[name]
    if not name.isidentifier():  # rather a piece of a password than a name to show
        raise ServerError(f"LIBRA_DATABASE_URL cannot be read: {ENCODE}")
    raise ServerError(
        f"LIBRA_DATABASE_URL has a parameter {name!r} that is not known here: leave it out "
        "(known are libpq's, and schema, ssl and pgbouncer)"
    )


def _of_url(rest: str) -> list[tuple[str, str]]:
    """What is behind the scheme of a URL, in libpq's words."""
    parts = urlsplit(f"//{rest}")
    if parts.fragment or "@" in parts.query:
        raise ServerError(f"LIBRA_DATABASE_URL cannot be read: {ENCODE}")
    account, _, hosts = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    found = [("user", user), ("password", password), ("dbname", parts.path.lstrip("/"))]
    places = [_place(one) for one in hosts.split(",")]
    if hosts:
        found.append(("host", ",".join(host for host, _ in places)))
    if any(port for _, port in places):
        found.append(("port", ",".join(port for _, port in places)))
    stated = [(name, unquote(value)) for name, value in found if value]
    return [*stated, *parse_qsl(parts.query, keep_blank_values=True)]


def _place(one: str) -> tuple[str, str]:
    host, port = one, ""
    if one.startswith("["):
        host, _, port = one[1:].partition("]")
        port = port.removeprefix(":")
    elif ":" in one:
        host, _, port = one.partition(":")
    if port:
        _check_port(port)
    return host, port


def _check_port(port: str) -> None:
    if not port.isdigit():
        raise ServerError(f"LIBRA_DATABASE_URL: the port is not a number; {ENCODE}")


def _of_words(text: str) -> list[tuple[str, str]]:
    """What libpq's other form says, host=HOST dbname=NAME."""
    try:
        return [(name, str(value)) for name, value in conninfo.conninfo_to_dict(text).items()]
    except Exception as error:
        raise ServerError(f"LIBRA_DATABASE_URL is not a Postgres URL ({FORM})") from error


def _url(parameters: dict[str, str]) -> sa.URL:
    host, port = parameters.pop("host", None), parameters.pop("port", None)
    query = dict(parameters)
    user, password, database = (query.pop(name, None) for name in ("user", "password", "dbname"))
    if not host or host.startswith("/") or "," in f"{host}{port}":
        query |= {name: value for name, value in (("host", host), ("port", port)) if value}
        host = port = None
    return sa.URL.create("postgresql+psycopg", user, password, host, int(port) if port else None, database, query=query)
