"""Redis and Postgres: configured servers, or the embedded ones where none are configured.

Entry points open `services()` once; everything below them sees two URLs and cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import sqlalchemy as sa

from infra.broker.app import redis_client
from infra.broker.queues import Publisher, Queues
from infra.coordination.store import CoordinationStore, open_coordination
from infra.errors import UsageError
from infra.ledger.engine import open_ledger, require_current, upgrade
from infra.servers.embedded import EmbeddedServers
from infra.settings import Settings, child_environment


@dataclass
class Services:
    """The two servers, opened when first used."""

    settings: Settings
    redis_url: str
    database_url: str
    embedded: bool

    @cached_property
    def engine(self) -> sa.Engine:
        """The ledger, at the revision this code needs (embedded: brought there)."""
        engine = open_ledger(self.database_url, wait_s=self.settings.wait_for_servers_s)
        if self.embedded:
            upgrade(engine)
        require_current(engine)
        return engine

    @cached_property
    def coordination(self) -> CoordinationStore:
        """The coordination store."""
        return open_coordination(self.redis_url, self.settings)

    @cached_property
    def coordination_at_once(self) -> CoordinationStore:
        """The coordination store, for questions that do not wait for a broker that is away."""
        return open_coordination(self.redis_url, self.settings.model_copy(update={"wait_for_servers_s": 0}))

    @cached_property
    def publisher(self) -> Publisher:
        """The way onto the queues."""
        return Publisher(Queues(redis_client(self.redis_url), f"{self.settings.namespace}:"))

    def environment(self) -> dict[str, str]:
        """The environment of a process that is to use these servers."""
        return child_environment(LIBRA_REDIS_URL=self.redis_url, LIBRA_DATABASE_URL=self.database_url)


@contextmanager
def services(settings: Settings) -> Iterator[Services]:
    """The servers to use, for as long as the context lasts.

    Raises:
        UsageError: only one of the two URLs is configured.
        ServerError: a server cannot be reached or started.
    """
    redis_url, database_url = settings.redis_url, settings.database_url
    if redis_url and database_url:
        yield Services(settings, redis_url.get_secret_value(), database_url.get_secret_value(), embedded=False)
        return
    if redis_url or database_url:
        missing = "LIBRA_DATABASE_URL" if redis_url else "LIBRA_REDIS_URL"
        raise UsageError(f"{missing} is not set: configure both servers, or neither to use the embedded ones")
    with EmbeddedServers(settings.state_dir) as urls:
        yield Services(settings, urls.redis_url, urls.database_url, embedded=True)
