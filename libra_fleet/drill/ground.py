"""What faults act on: the fleet's processes by kind, and its two servers.

A process is found as an operator would find it, by its command line. Knows no fault and no schedule.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, LiteralString, NamedTuple

import psycopg
import redis
import sqlalchemy as sa
from psycopg import sql

from infra.errors import UsageError
from infra.servers.places import Places
from infra.servers.services import Services
from infra.supervise import Supervisor

if TYPE_CHECKING:
    import psutil

GUARD: Final = "fake"
_CONSUMER, _DEVICE, _FINALIZER = "worker.consumer.app", "worker.device", "worker.collector.finalizer"


def nothing() -> None:
    """The end of a fault that needs none."""


class Strike(NamedTuple):
    """A fault that was done: what it hit, and how it ends. `chunks` were put in by it, and have to settle as well."""

    hit: str
    end: Callable[[], None] = nothing
    chunks: frozenset[str] = frozenset()


class Ground:
    """The fleet of a drill. `state_dir` holds servers of the drill's own; None: configured ones, never killed."""

    def __init__(
        self,
        services: Services,
        fleet: Supervisor,
        state_dir: Path | None,
        chance: random.Random,
        *,
        lease_s: float,
        submit: Callable[[Sequence[str]], str],
    ) -> None:
        try:
            import psutil  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError("libra fleet drill needs psutil: pip install 'libra-fleet[drill]'") from error
        self._psutil = psutil
        self._fleet = fleet
        self._places = None if state_dir is None else Places(state_dir)
        self.services = services
        self.chance = chance
        self.lease_s = lease_s
        self.submit = submit
        """Puts one bulk chunk of these texts into a run that stays open; returns its id."""

    @property
    def places(self) -> Places:
        """The folders of the drill's own servers."""
        if self._places is None:
            raise UsageError("this fault is for servers of the drill's own")
        return self._places

    # Processes.

    def running(self, kind: str) -> list[psutil.Process]:
        """The processes of a kind that run, in the order of their machines."""
        found = [each for each in self._fleet.processes if each.name == kind and each.running]
        return [self._psutil.Process(each.process.pid) for each in found if each.process]

    def one(self, kind: str) -> psutil.Process | None:
        """One of them, by a seeded choice."""
        found = self.running(kind)
        return self.chance.choice(found) if found else None

    def device(self) -> psutil.Process | None:
        """The device process of some worker."""
        return self._child(lambda line: _DEVICE in line and _CONSUMER not in line)

    def consumer(self, lane: str) -> psutil.Process | None:
        """The consumer of a lane of some worker."""
        return self._child(lambda line: _CONSUMER in line and f'"lane": "{lane}"' in line)

    def finalizer(self) -> psutil.Process | None:
        """The process beside some collector that computes reports."""
        collector = self.one("collector")
        lines = [] if collector is None else _lines(collector)
        return next((child for child, line in lines if _FINALIZER in line), None)

    def consumers(self, lane: str) -> list[psutil.Process]:
        """The consumers of a lane, of all workers."""
        return [
            child
            for worker in self.running("worker")
            for child, line in _lines(worker)
            if _CONSUMER in line and f'"lane": "{lane}"' in line
        ]

    def machine(self) -> list[psutil.Process]:
        """All processes of one machine: a collector, and a worker with everything below it."""
        pairs = list(zip(self.running("worker"), self.running("collector"), strict=False))
        if not pairs:
            return []
        worker, collector = self.chance.choice(pairs)
        machine = [collector, worker]
        return [*machine, *(child for process in machine for child in process.children(recursive=True))]

    def keeper(self) -> psutil.Process:
        """The keeper of the drill's own servers."""
        return self._psutil.Process(int(self.places.keeper_lock.read_text()))

    def server(self, name: str) -> psutil.Process | None:
        """An embedded server, by the keeper that is its parent."""
        return next((child for child in self.keeper().children() if child.name().startswith(name)), None)

    def stopped(self, processes: Sequence[psutil.Process]) -> Strike | None:
        """SIGSTOP them until the end of the fault; None where there is none."""
        if not processes:
            return None
        for process in processes:
            process.suspend()

        def resume() -> None:
            for process in processes:
                if process.is_running():
                    process.send_signal(signal.SIGCONT)

        return Strike(f"{described(processes)} stopped", resume)

    def _child(self, matches: Callable[[str], bool]) -> psutil.Process | None:
        worker = self.one("worker")
        return None if worker is None else next((child for child, line in _lines(worker) if matches(line)), None)

    # Servers.

    @property
    def database(self) -> str:
        """The ledger's database."""
        return str(sa.make_url(self.services.database_url).database)

    @contextmanager
    def administrator(self) -> Iterator[psycopg.Connection]:
        """An autocommitting connection to the server's other database, without the product's limits."""
        url = sa.make_url(self.services.database_url).set(drivername="postgresql", database="postgres")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            yield connection

    def on_database(self, statement: LiteralString, *names: str) -> None:
        """Run a statement; each {} stands for the ledger's database, or for one of `names`."""
        with self.administrator() as connection:
            given = map(sql.Identifier, names or (self.database,))
            connection.execute(sql.SQL(statement).format(*given))

    def end_sessions(self) -> None:
        """Terminate every session on the ledger's database."""
        with self.administrator() as connection:
            sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(sessions, [self.database])

    @contextmanager
    def broker(self) -> Iterator[redis.Redis]:
        """A client of the broker."""
        with redis.Redis.from_url(self.services.redis_url) as client:
            yield client

    def answer(self) -> bool:
        """True: both servers answer; otherwise it raises what they raise."""
        with self.broker() as client:
            client.ping()
        self.on_database("SELECT 1 AS {}")
        return True

    def forget(self) -> None:
        """Delete everything that the fleet keeps on the broker."""
        with self.broker() as client:
            if self._places is not None:
                client.flushall()
            else:
                forget_namespace(client, self.services.settings.namespace)


def described(processes: Iterable[psutil.Process]) -> str:
    """Names and pids, for a person."""
    return ", ".join(f"{process.name()} {process.pid}" for process in processes)


def forget_namespace(client: redis.Redis, namespace: str) -> None:
    """Delete every key of a namespace and no other."""
    for key in client.scan_iter(f"{namespace}:*", count=1_000):
        client.delete(key)


def _lines(parent: psutil.Process) -> list[tuple[psutil.Process, str]]:
    return [(child, " ".join(child.cmdline())) for child in parent.children(recursive=True)]
