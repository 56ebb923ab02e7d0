"""The cache on a real Valkey: what it keeps, and that nothing of it is missed when it is away or full."""

from __future__ import annotations

import itertools
import socket

import pytest
import redis

from infra.coordination.cache import MEMORY_SHARE, PAUSE_S, Cache, open_cache
from infra.settings import Settings


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def cache_on(client: redis.Redis, clock: Clock | None = None) -> Cache:
    return Cache(client, namespace="libra", ttl_s=60, clock=clock or Clock())


def put(cache: Cache, client: redis.Redis, values: dict[bytes, bytes]) -> None:
    """As a consumer does, which looks for room now and then and writes with other things."""
    cache.look_for_room()
    with client.pipeline() as pipe:
        cache.put(pipe, values)
        pipe.execute()


def test_values_are_found_by_key_and_forgotten_in_time(redis_url: str, client: redis.Redis) -> None:
    cache = open_cache(redis_url, Settings(cache_ttl_s=60))
    put(cache, client, {b"\0one": b"1", b"two\xff": b""})

    assert cache.get([b"two\xff", b"none", b"\0one"]) == [b"", None, b"1"]
    assert [0 < int(client.ttl(key)) <= 60 for key in client.scan_iter("libra:cache:*")] == [True, True]
    assert cache.get([]) == []


def test_a_server_that_never_answers_is_asked_again_only_after_a_pause() -> None:
    clock, asked = Clock(), itertools.count()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        silent = open_cache(url, Settings())
        assert silent.get([b"a"]) == [None], "it gave up waiting"

    class Away:
        def mget(self, _: object) -> object:
            next(asked)
            raise redis.ConnectionError("away")

    cache = Cache(Away(), namespace="libra", ttl_s=60, clock=clock)  # type: ignore[arg-type]
    for _ in range(3):
        assert cache.get([b"a", b"b"]) == [None, None]
        cache.look_for_room()
    assert next(asked) == 1
    clock.now += PAUSE_S
    cache.get([b"a"])
    assert next(asked) == 3


def test_a_redis_that_runs_full_is_left_to_the_broker(client: redis.Redis) -> None:
    clock = Clock()
    cache = cache_on(client, clock)
    try:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", int(used / MEMORY_SHARE / 1.5))
        put(cache, client, {b"a": b"1"})
        assert cache.get([b"a"]) == [None], "above its share nothing is kept"

        client.config_set("maxmemory", 0)
        put(cache, client, {b"a": b"1"})
        assert cache.get([b"a"]) == [None], "it does not look each time"
        clock.now += PAUSE_S
        put(cache, client, {b"a": b"1"})
        assert cache.get([b"a"]) == [b"1"]

    finally:
        client.config_set("maxmemory", 0)
