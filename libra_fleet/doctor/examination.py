"""The whole examination, in the order in which one thing depends on the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import redis
import sqlalchemy as sa

from infra.broker.app import connect_redis
from infra.errors import ServerError
from infra.fleet import look
from infra.ledger import reading
from infra.ledger.engine import HEAD, current_revision, open_ledger
from infra.servers.embedded import EmbeddedServers
from infra.servers.services import Services
from infra.settings import Settings
from libra_fleet.doctor.contradictions import check_settings
from libra_fleet.doctor.finding import Finding, error, good
from libra_fleet.doctor.fleet import check_fleet
from libra_fleet.doctor.machine import check_checkpoint, check_devices, check_disk, check_files
from libra_fleet.doctor.servers import check_clocks, check_postgres, check_redis
from libra_fleet.doctor.versions import check_versions


def examine(settings: Settings, *, guard: str, location: str | None, devices: str) -> Iterator[Finding]:
    """Everything; what cannot be looked at because something else is wrong is left out."""
    yield from check_versions()
    yield from check_disk(settings.state_dir)
    yield from check_files()
    yield from check_devices(devices, guard, location, visible=settings.cuda_visible_devices)
    yield from check_checkpoint(guard, location)
    if bool(settings.redis_url) != bool(settings.database_url):
        missing = "LIBRA_DATABASE_URL" if settings.redis_url else "LIBRA_REDIS_URL"
        yield error(
            "servers",
            f"{missing} is not set, the other URL is",
            why="no process starts: it is unclear which servers are meant",
            do=f"set {missing} too, or neither to use the embedded servers",
        )
        yield from check_settings(settings)
    elif settings.redis_url and settings.database_url:
        urls = settings.redis_url.get_secret_value(), settings.database_url.get_secret_value()
        yield from examine_servers(settings, *urls, embedded=False)
    else:
        yield from _examine_embedded(settings)


def _examine_embedded(settings: Settings) -> Iterator[Finding]:
    try:
        with EmbeddedServers(settings.state_dir) as urls:
            yield good("servers", f"embedded, in {settings.state_dir}")
            yield from examine_servers(settings, urls.redis_url, urls.database_url, embedded=True)
    except ServerError as problem:
        yield error(
            "servers",
            f"the embedded servers do not start: {problem}",
            why="without servers nothing runs",
            do="pip install 'libra-fleet[embedded]', or set LIBRA_REDIS_URL and LIBRA_DATABASE_URL",
        )


def examine_servers(settings: Settings, redis_url: str, database_url: str, *, embedded: bool) -> Iterator[Finding]:
    """Both servers, their clocks, the settings beside what the ledger has seen, and the fleet."""
    client = yield from _redis(redis_url)
    engine = yield from _postgres(database_url)
    if client is not None:
        yield from check_redis(client)
    slowest_s = None
    if engine is not None:
        yield from check_postgres(engine, embedded=embedded)
    yield from check_clocks(client, engine)
    at_head = engine is not None and current_revision(engine) == HEAD
    if engine is not None and at_head:
        slowest_s = reading.slowest_chunk_s(engine)
    yield from check_settings(settings, slowest_chunk_s=slowest_s)
    if client is not None and engine is not None and at_head:
        fleet = look(Services(settings, redis_url, database_url, embedded=embedded), at_once=True)
        yield from check_fleet(fleet)


def _redis(url: str) -> Generator[Finding, None, redis.Redis | None]:
    try:
        return connect_redis(url)
    except ServerError as problem:
        yield error(
            "redis",
            str(problem),
            why="no queue, no board: nothing is submitted or judged",
            do='redis-cli -u "$LIBRA_REDIS_URL" ping; look at address, password and firewall',
        )
    return None


def _postgres(url: str) -> Generator[Finding, None, sa.Engine | None]:
    try:
        return open_ledger(url)
    except ServerError as problem:
        yield error(
            "postgres",
            str(problem),
            why="no ledger: nothing is accepted or settled",
            do="psql with the same address; look at password, pg_hba.conf and firewall",
        )
    return None
