"""Redis and Postgres: configured servers, or the embedded ones where none are configured.

Entry points open `services()` once; everything below them sees two URLs and cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import sqlalchemy as sa

from infra.broker.app import redis_client
from infra.broker.queues import Publisher, Queues
from infra.coordination.store import CoordinationStore, open_coordination
from infra.errors import UsageError
from infra.ledger.engine import Limits, open_ledger, require_current, upgrade
from infra.servers.embedded import EmbeddedServers
from infra.settings import Settings, child_environment


class Work(Enum):
    """The kind of work that sessions at the ledger do: it decides how long they may keep others waiting."""

    COMMAND = "command"
    INTAKE = "intake"
    SETTLE = "settle"

    def limits(self, settings: Settings) -> Limits:
        """The limits of such sessions."""
        own = {
            Work.COMMAND: (settings.ledger_lock_s, settings.ledger_long_statement_s),
            Work.INTAKE: (settings.ledger_lock_s, settings.ledger_statement_s),
            Work.SETTLE: (settings.ledger_settle_lock_s, settings.ledger_settle_statement_s),
        }
        lock_s, statement_s = own[self]
        return Limits(
            lock_s=lock_s,
            statement_s=statement_s,
            idle_s=settings.ledger_idle_s,
            long_statement_s=settings.ledger_long_statement_s,
            stream_idle_s=settings.ledger_stream_idle_s,
            peer_s=settings.ledger_peer_s,
        )


@dataclass
class Services:
    """The two servers, opened when first used."""

    settings: Settings
    redis_url: str
    database_url: str
    embedded: bool
    work: Work = Work.COMMAND

    def working(self, work: Work) -> Services:
        """The same servers, with a ledger of its own connections for this kind of work."""
        return replace(self, work=work)

    @cached_property
    def engine(self) -> sa.Engine:
        """The ledger, at the revision this code needs (embedded: brought there)."""
        limits = self.work.limits(self.settings)
        engine = open_ledger(self.database_url, wait_s=self.settings.wait_for_servers_s, limits=limits)
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
