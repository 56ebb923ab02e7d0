"""Redis' address: one reading for all who connect, in every form that people are given."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
import redis
from kombu import Connection

from infra.broker.address import parse_redis
from infra.broker.app import connect_redis
from infra.errors import ServerError


def told(redis_url: str) -> dict[str, Any]:
    """What redis-py's connection is told."""
    return dict(parse_redis(redis_url).client().connection_pool.connection_kwargs)


ADDRESSES = [
    ("redis://host", ("host", 6379, 0, None, None)),
    ("redis://host:7000/3", ("host", 7000, 3, None, None)),
    ("redis://:word@host:7000", ("host", 7000, 0, None, "word")),
    ("redis://me:p%40ss%2Fw%23rd%3F%3A@host/1", ("host", 6379, 1, "me", "p@ss/w#rd?:")),
    ("redis://host?db=4&username=me&password=word", ("host", 6379, 4, "me", "word")),
    ("valkey://me:word@host:1/2", ("host", 1, 2, "me", "word")),
    ("redis://[::1]:7000/0", ("::1", 7000, 0, None, None)),
    ("rediss://default:word@host.upstash.io:6379", ("host.upstash.io", 6379, 0, "default", "word")),
]


@pytest.mark.parametrize(("redis_url", "expected"), ADDRESSES)
def test_client_and_broker_read_the_same_server_database_and_account(
    redis_url: str, expected: tuple[str, int, int, str | None, str | None]
) -> None:
    host, port, db, username, password = expected
    client, broker = told(redis_url), Connection(parse_redis(redis_url).broker_url())

    assert (client["host"], client["port"], client["db"]) == (host, port, db)
    assert (client["username"], client["password"]) == (username, password)
    assert (broker.hostname, broker.port or 6379, int(broker.virtual_host)) == (host, port, db)
    assert (broker.userid or None, broker.password or None) == (username, password)


@pytest.mark.parametrize(
    "redis_url",
    [
        "unix:///run/a.sock?db=3&username=me&password=p%40ss",
        "unix://me:p%40ss@/run/a.sock?db=3",
        "redis+socket://me:p%40ss@/run/a.sock?virtual_host=3",
    ],
)
def test_a_sockets_account_and_database_reach_client_and_broker_however_they_are_written(redis_url: str) -> None:
    client = told(redis_url)
    broker = parse_redis(redis_url).broker_url()

    assert (client["path"], client["db"], client["username"], client["password"]) == ("/run/a.sock", 3, "me", "p@ss")
    assert broker == "redis+socket://me:p%40ss@/run/a.sock?virtual_host=3"


@pytest.mark.parametrize("redis_url", ["rediss://host", "rediss://host/1?ssl_ca_certs=/ca.pem", "valkeys://host"])
def test_a_certificate_is_checked_by_client_and_broker_unless_the_address_says_otherwise(redis_url: str) -> None:
    assert parse_redis(redis_url).client().connection_pool.connection_class is redis.SSLConnection
    assert told(redis_url)["ssl_cert_reqs"] == "required"
    assert "ssl_cert_reqs=required" in parse_redis(redis_url).broker_url()


def test_checking_no_certificate_has_to_be_said() -> None:
    unchecked = "rediss://host?ssl_cert_reqs=none"

    assert told(unchecked)["ssl_cert_reqs"] == "none"
    assert parse_redis(unchecked).broker_url() == "rediss://host/0?ssl_cert_reqs=none"


def test_sentinels_are_asked_for_the_service_by_client_and_broker() -> None:
    address = parse_redis("sentinel://me:word@a:1,[::1],c:3/mymaster/2?sentinel_password=other")
    pool: Any = address.client(socket_timeout=2).connection_pool

    assert pool.service_name == "mymaster"
    asked = [node.connection_pool.connection_kwargs for node in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"], one["password"]) for one in asked] == [
        ("a", 1, "other"),
        ("::1", 26379, "other"),
        ("c", 3, "other"),
    ]
    assert (pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == (2, "word")
    assert address.broker_url() == ";".join(f"sentinel://me:word@{host}/2" for host in ("a:1", "[::1]:26379", "c:3"))
    assert address.broker_options()["master_name"] == "mymaster"
    assert address.broker_options()["sentinel_kwargs"]["password"] == "other"


@pytest.mark.parametrize(
    ("redis_url", "said"),
    [
        ("http://host", "not a Redis URL"),
        ("host:6379", "not a Redis URL"),
        ("", "not a Redis URL"),
        ("redis://host/0?pool_size=3", "'pool_size'"),
        ("redis://host/0?db=first", "'db'"),
        ("redis://host/0?ssl_cert_reqs=required", "rediss://"),
        ("rediss://host?ssl_cert_reqs=perhaps", "'ssl_cert_reqs'"),
        ("redis://a,b/0", "only sentinels"),
        ("redis://host/cache", "database is a number"),
        ("sentinel://host:26379/0", "names no service"),
        ("unix://", "names no socket"),
        ("redis://host:port/0", "port is not a number"),
    ],
)
def test_an_address_that_cannot_be_is_refused_in_one_line_that_names_what_is_wrong(redis_url: str, said: str) -> None:
    with pytest.raises(ServerError, match=re.escape(said)) as refused:
        connect_redis(redis_url)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("special", "/#?@: %&=")
def test_a_password_that_is_not_encoded_is_read_as_it_is_or_refused_and_shown_in_no_part(special: str) -> None:
    with suppress(ServerError):
        address = parse_redis(f"redis://me:sec{special}ret=1@host:6379/0")
        assert address.password == f"sec{special}ret=1"
        assert not re.search("sec|ret", f"{address!r} {address.shown}")
        return
    with pytest.raises(ServerError, match="percent-encoded") as refused:
        parse_redis(f"redis://me:sec{special}ret=1@host:6379/0")
    assert not re.search("sec|ret", str(refused.value))
