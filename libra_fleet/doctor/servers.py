"""Redis and Postgres: versions, settings that may lose data, distance, clocks; and the fleet that uses them."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, Final, cast

import redis
import sqlalchemy as sa

from infra.ledger.engine import HEAD, current_revision
from libra_fleet.doctor import Finding, error, good, warning
from schemas.fleet import FleetSnapshot, ready

_OLDEST_REDIS: Final = (6, 2)
_OLDEST_POSTGRES: Final = 13
_TESTED_POSTGRES: Final = 18
_NEAR_S: Final = 0.005
_TRIES: Final = 9
_FULL: Final = 0.8
_SAME_TIME_S: Final = 1.0
_OTHER_TIME_S: Final = 30.0
_VERSION: Final = version("libra-fleet")


def check_redis(client: redis.Redis) -> Iterator[Finding]:
    """Findings on the broker, except on its clock."""
    facts: dict[str, Any] = client.info()
    name = "Valkey" if facts.get("server_name") == "valkey" else "Redis"
    running = str(facts.get("valkey_version") or facts.get("redis_version") or "?")
    near_s = _median_s(client.ping)
    yield good("redis", f"{name} {running} answers in {near_s * 1000:.1f} ms")
    # Valkey calls itself Redis 7.2.4 for those who ask in the old way.
    if tuple(int(part) for part in str(facts.get("redis_version", "0")).split(".")[:2]) < _OLDEST_REDIS:
        yield error(
            "redis version",
            f"{name} {running} is older than 6.2",
            why="the fleet has never been run on it",
            do="use Redis 8 or Valkey 9, as docker-compose.yml does",
        )
    if facts.get("redis_mode") == "cluster" or facts.get("cluster_enabled"):
        yield error(
            "redis cluster",
            f"{name} runs as a cluster",
            why="Celery's transport does not work on a cluster (its multi-key commands cross slots)",
            do="use one Redis with a replica, and a fleet for each guard if one is not enough (docs/operations.md)",
        )
    if near_s > _NEAR_S:
        yield _far("redis latency", name, near_s)
    settings: dict[str, str] | None = None
    try:
        settings = cast("dict[str, str]", client.config_get("maxmemory-policy", "appendonly"))
    except redis.ResponseError:
        yield warning(
            "redis settings",
            f"{name} does not allow its settings to be read (CONFIG GET)",
            why="an eviction policy other than noeviction drops queued chunks silently",
            do="check in your provider's console that maxmemory-policy is noeviction and appendonly is on",
        )
    if settings is not None and (policy := settings.get("maxmemory-policy")) != "noeviction":
        yield error(
            "redis eviction",
            f"maxmemory-policy is {policy}",
            why="a full Redis then drops queued chunks instead of making producers wait; each is queued again only "
            "after a lease",
            do="redis-cli CONFIG SET maxmemory-policy noeviction (and in redis.conf)",
        )
    if settings is not None and settings.get("appendonly") != "yes":
        yield warning(
            "redis persistence",
            "appendonly is off",
            why="a restart empties the queues; the reconciler fills them again from the ledger after a lease",
            do="redis-cli CONFIG SET appendonly yes (and in redis.conf: appendfsync everysec)",
        )
    used, limit = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    if limit and used / limit > _FULL:
        yield warning(
            "redis memory",
            f"{name} uses {used / limit:.0%} of its {limit / 2**20:,.0f} MiB",
            why="once it is full, all producers wait",
            do="give it more memory, or lower LIBRA_HIGH_WATER_CHUNKS and LIBRA_CACHE_TTL_S",
        )


def check_postgres(engine: sa.Engine, *, embedded: bool) -> Iterator[Finding]:
    """Findings on the ledger's server, except on its clock. An embedded ledger is migrated by the next start."""
    with engine.connect() as connection:
        running = str(connection.scalar(sa.text("SHOW server_version")))
        near_s = _median_s(lambda: connection.execute(sa.text("SELECT 1")))
        durable = {
            name: connection.scalar(sa.text(f"SHOW {name}"))
            for name in ("fsync", "synchronous_commit", "full_page_writes")
        }
    yield good("postgres", f"Postgres {running} answers in {near_s * 1000:.1f} ms")
    major = int(running.replace(".", " ").split(maxsplit=1)[0])
    if major < _OLDEST_POSTGRES:
        yield error(
            "postgres version",
            f"Postgres {major} is older than {_OLDEST_POSTGRES}",
            why="the ledger uses features of later versions",
            do=f"upgrade to Postgres {_TESTED_POSTGRES}",
        )
    elif major > _TESTED_POSTGRES:
        yield warning(
            "postgres version",
            f"Postgres {major} is newer than the tested version ({_TESTED_POSTGRES})",
            why="the fleet has not been run on it",
            do="run make test with it, and report the result",
        )
    for name, value in durable.items():
        if value == "off":
            yield error(
                "postgres durability",
                f"{name} is off",
                why="a crash can lose verdicts that were reported as settled, and nothing brings them back",
                do=f"psql -c 'ALTER SYSTEM RESET {name}' -c 'SELECT pg_reload_conf()' (and check the database's own "
                f"settings: ALTER DATABASE … RESET {name})",
            )
    if near_s > _NEAR_S:
        yield _far("postgres latency", "Postgres", near_s)
    revision = current_revision(engine)
    if revision == HEAD:
        yield good("ledger", f"the ledger is at revision {revision}")
    elif not embedded:
        newer = revision is not None and revision > HEAD
        yield error(
            "ledger revision",
            f"the ledger is at revision {revision or 'none'}, this version needs {HEAD}",
            why="every process refuses to start on a ledger of another revision",
            do="install the version that migrated it" if newer else "libra fleet migrate",
        )


def check_clocks(
    client: redis.Redis | None, engine: sa.Engine | None, clock: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Findings on this machine's clock compared with the servers', allowing for half a round trip."""
    servers: list[tuple[str, Callable[[], float]]] = []
    if client is not None:
        servers.append(("Redis", lambda: _redis_time(client)))
    if engine is not None:
        servers.append(("Postgres", lambda: _postgres_time(engine)))
    for name, ask in servers:
        before = clock()
        theirs = ask()
        ahead_s = (before + clock()) / 2 - theirs
        if abs(ahead_s) <= _SAME_TIME_S:
            yield good("clocks", f"this machine and {name} agree within {abs(ahead_s) * 1000:.0f} ms")
            continue
        found = error if abs(ahead_s) > _OTHER_TIME_S else warning
        yield found(
            "clocks",
            f"this machine's clock is {abs(ahead_s):,.1f} s {'ahead of' if ahead_s > 0 else 'behind'} {name}'s",
            why="queue times are wrong, receivers refuse webhooks as too old or too new, and daily live runs begin at "
            "the wrong time",
            do="timedatectl set-ntp true (or start chrony) on both machines",
        )


def _redis_time(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return seconds + microseconds / 1e6


def _postgres_time(engine: sa.Engine) -> float:
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))  # connecting takes longer than asking
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0)


def _median_s(ask: Callable[[], object]) -> float:
    took = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        ask()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def _far(check: str, name: str, near_s: float) -> Finding:
    return warning(
        check,
        f"{name} answers in {near_s * 1000:.1f} ms",
        why="a live item waits for several round trips; a bulk run hardly notices",
        do="run workers, collector and gateway in the servers' own network; check its latency and its load",
    )


def check_fleet(fleet: FleetSnapshot) -> Iterator[Finding]:
    """Findings on the announced processes and on the work that waits for them."""
    for server, reason in fleet.away.items():
        yield error(
            "fleet",
            f"the {server} stopped answering: {reason}",
            why="the rest of the fleet could not be examined",
            do="run libra fleet doctor again once the server answers",
        )
    if fleet.away:
        return
    kinds = Counter(process.kind for process in fleet.announced)
    running = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    yield good("fleet", running or "no process of the fleet is running")
    for process in fleet.announced:
        if process.version != _VERSION:
            yield warning(
                "fleet versions",
                f"{process.kind} {process.id} runs version {process.version or 'unknown'}, this is {_VERSION}",
                why="older processes send newer messages to the dead-letter queue; settings and figures may differ",
                do="upgrade it and restart it; one machine after the other is fine",
            )
        if process.state == "quarantined":
            yield warning(
                "fleet devices",
                f"device {process.device} of {process.id} failed: {process.trouble or 'its log says why'}",
                why="it judges nothing; its worker tries it again after 30 s, then after twice as long each time",
                do="mend what the sentence names; docs/gpu.md has the common ones",
            )
    yield from _fingerprints(fleet)
    yield from _work(fleet)
    if fleet.dead_letters:
        yield warning(
            "parked messages",
            f"{fleet.dead_letters:,} messages in the dead-letter queue",
            why="no process here could read them; the items of a chunk among them are queued again after a lease",
            do="look for events ending in _parked in the logs; upgrade the processes that are older than the sender",
        )


def _fingerprints(fleet: FleetSnapshot) -> Iterator[Finding]:
    """Workers of one guard that are not the same guard."""
    seen: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for worker in fleet.announced:
        for mode, digest in (worker.fingerprints or {}).items():
            seen[str(worker.guard), mode][digest].append(worker.id)
    differing: dict[str, dict[str, list[str]]] = {}
    for (guard, _), by_digest in seen.items():
        if len(by_digest) > 1:
            differing.setdefault(guard, by_digest)  # one mode is enough: the others differ likewise
    for guard, by_digest in differing.items():
        sides = "; ".join(f"{digest}: {', '.join(ids)}" for digest, ids in sorted(by_digest.items()))
        yield error(
            "fingerprints",
            f"the workers of {guard} differ in model, revision, prompt, dtype or engine ({sides})",
            why="a bulk run takes the verdicts of one fingerprint only; those of the other workers are refused",
            do="give all of them the same checkpoint, --dtype, --engine and version, and restart those that differ "
            f"(libra guards shows what {guard} should be)",
        )


def _work(fleet: FleetSnapshot) -> Iterator[Finding]:
    """Work that waits for processes that are not there, or too few."""
    for queue in fleet.queues:
        if queue.pending and not ready(fleet.announced, "worker", queue.guard):
            yield error(
                "lanes",
                f"{queue.guard}, {queue.lane.value}: work is pending ({queue.waiting:,} chunks queued) and no worker "
                "for it is ready",
                why="none of it is judged",
                do=f"libra fleet worker --guard {queue.guard}",
            )
    pending = sum(run.pending for run in fleet.runs)
    if (fleet.verdicts_waiting or pending) and not fleet.of_kind("collector"):
        yield error(
            "collector",
            f"no collector runs; {fleet.verdicts_waiting:,} judged chunks wait and {pending:,} items are pending",
            why="no verdict is settled, no run ends, and no lost chunk is queued again",
            do="libra fleet collector",
        )
    due = f"{fleet.webhooks_due:,} webhooks are due, the oldest for {fleet.webhooks_due_s:,.0f} s"
    if fleet.webhooks_due and not fleet.of_kind("webhooks"):
        yield error(
            "webhooks",
            f"{due}, and no sender runs",
            why="platforms do not learn what was decided",
            do="libra fleet webhooks",
        )
    elif fleet.webhooks_due and fleet.webhooks_due_s > 60:
        yield warning(
            "webhooks",
            due,
            why="the senders do not keep up with the decisions",
            do="start another libra fleet webhooks, or raise LIBRA_WEBHOOK_CONNECTIONS",
        )
