"""The broker's spelling of a Redis URL."""

from __future__ import annotations

import pytest

from infra.broker.app import broker_url


@pytest.mark.parametrize(
    ("redis_url", "expected"),
    [
        ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock?virtual_host=0"),
        ("unix://:word@/run/valkey.sock?db=1", "redis+socket://:word@/run/valkey.sock?virtual_host=1"),
        ("redis://host:6379/2", "redis://host:6379/2"),
        ("rediss://user:word@host/0?ssl_cert_reqs=required", "rediss://user:word@host/0?ssl_cert_reqs=required"),
    ],
)
def test_only_a_socket_is_written_differently_for_celery(redis_url: str, expected: str) -> None:
    """redis-py says unix:// and db, kombu says redis+socket:// and virtual_host."""
    assert broker_url(redis_url) == expected
