"""The whole examination, in the order in which one thing depends on another, and the settings among themselves."""

from __future__ import annotations

from collections.abc import Iterator

from infra.broker.app import connect_redis
from infra.coordination.leases import HELD_FOR_S
from infra.errors import ServerError
from infra.fleet import look
from infra.ledger import stats
from infra.ledger.engine import HEAD, current_revision, open_ledger
from infra.servers.embedded import EmbeddedServers
from infra.servers.services import Services
from infra.settings import Settings, unknown_settings
from libra_fleet.doctor import Finding, error, good, warning
from libra_fleet.doctor.machine import check_checkpoint, check_devices, check_disk, check_files, check_versions
from libra_fleet.doctor.servers import check_clocks, check_fleet, check_postgres, check_redis


def examine(settings: Settings, *, guard: str, location: str | None, devices: str) -> Iterator[Finding]:
    """All findings; what cannot be examined because something else is wrong is left out."""
    yield from check_versions()
    yield from check_disk(settings.state_dir)
    yield from check_files()
    yield from check_devices(devices, guard, location, visible=settings.cuda_visible_devices)
    yield from check_checkpoint(guard, location)
    if settings.redis_url and settings.database_url:
        urls = settings.redis_url.get_secret_value(), settings.database_url.get_secret_value()
        yield from _examine_servers(Services(settings, *urls, embedded=False))
    elif settings.redis_url or settings.database_url:
        missing = "LIBRA_DATABASE_URL" if settings.redis_url else "LIBRA_REDIS_URL"
        yield error(
            "servers",
            f"{missing} is not set, the other URL is",
            why="no process starts: it is unclear which servers are meant",
            do=f"set {missing} too, or neither to use the embedded servers",
        )
        yield from check_settings(settings)
    else:
        try:
            with EmbeddedServers(settings.state_dir) as embedded:
                yield good("servers", f"embedded, in {settings.state_dir}")
                yield from _examine_servers(
                    Services(settings, embedded.redis_url, embedded.database_url, embedded=True)
                )
        except ServerError as problem:
            yield error(
                "servers",
                f"the embedded servers do not start: {problem}",
                why="nothing runs without servers",
                do="pip install 'libra-fleet[embedded]', or set LIBRA_REDIS_URL and LIBRA_DATABASE_URL",
            )


def _examine_servers(services: Services) -> Iterator[Finding]:
    """Findings on both servers, their clocks, the settings compared with what the ledger has seen, and the fleet."""
    client = engine = None
    try:
        client = connect_redis(services.redis_url)
    except ServerError as problem:
        yield error(
            "redis",
            str(problem),
            why="without queues and coordination nothing is submitted or judged",
            do='redis-cli -u "$LIBRA_REDIS_URL" ping; check address, password and firewall',
        )
    try:
        engine = open_ledger(services.database_url)
    except ServerError as problem:
        yield error(
            "postgres",
            str(problem),
            why="without the ledger nothing is accepted or settled",
            do="connect with psql to the same address; check password, pg_hba.conf and firewall",
        )
    if client is not None:
        yield from check_redis(client)
    if engine is not None:
        yield from check_postgres(engine, embedded=services.embedded)
    yield from check_clocks(client, engine)
    # The fleet's own engine would migrate an embedded ledger, and the doctor changes nothing.
    at_head = engine is not None and current_revision(engine) == HEAD
    yield from check_settings(services.settings, stats.slowest_chunk_s(engine) if engine and at_head else None)
    if client is not None and at_head:
        yield from check_fleet(look(services, at_once=True))


def check_settings(settings: Settings, slowest_chunk_s: float | None = None) -> Iterator[Finding]:
    """Findings on settings that contradict each other or the slowest chunk of the last day (seconds; None: unknown)."""
    found = [*_unknown(), *_contradictions(settings, slowest_chunk_s or 0.0)]
    yield from found or [good("settings", "no two of them contradict each other")]


def _unknown() -> Iterator[Finding]:
    for name, meant in unknown_settings().items():
        yield warning(
            "settings",
            f"nothing reads {name}",
            why="what it should change keeps its default",
            do=f"did you mean {meant}?" if meant else "unset it; docs/configuration.md lists every setting",
        )


def _contradictions(settings: Settings, slowest_chunk_s: float) -> Iterator[Finding]:
    if settings.visibility_timeout_s <= settings.batch_deadline_s:
        yield error(
            "settings",
            f"LIBRA_VISIBILITY_TIMEOUT_S ({settings.visibility_timeout_s}) is not above LIBRA_BATCH_DEADLINE_S "
            f"({settings.batch_deadline_s:g})",
            why="Celery delivers a chunk again while its batch may still run, and it is judged twice",
            do=f"LIBRA_VISIBILITY_TIMEOUT_S={int(4 * settings.batch_deadline_s)}",
        )
    for name, lease_s in (("BULK", settings.bulk_lease_s), ("LIVE", settings.live_lease_s)):
        if lease_s < settings.reconcile_every_s:
            yield warning(
                "settings",
                f"LIBRA_{name}_LEASE_S ({lease_s:g}) is shorter than LIBRA_RECONCILE_EVERY_S "
                f"({settings.reconcile_every_s:g})",
                why="the reconciler does not run often enough to queue a lost chunk again within that time",
                do=f"LIBRA_RECONCILE_EVERY_S={lease_s / 2:g}",
            )
        elif lease_s < HELD_FOR_S:
            yield warning(
                "settings",
                f"LIBRA_{name}_LEASE_S ({lease_s:g}) is shorter than the {HELD_FOR_S} s for which a consumer holds a "
                "chunk after each renewal",
                why="the chunks of a consumer that pauses briefly are judged a second time elsewhere",
                do=f"LIBRA_{name}_LEASE_S={2 * HELD_FOR_S}",
            )
    if settings.live_high_water_age_s > settings.gateway_wait_s:
        yield warning(
            "settings",
            f"LIBRA_LIVE_HIGH_WATER_AGE_S ({settings.live_high_water_age_s:g}) is above LIBRA_GATEWAY_WAIT_S "
            f"({settings.gateway_wait_s:g})",
            why="an overloaded gateway answers every request with 202 long before it answers one with 429",
            do=f"LIBRA_LIVE_HIGH_WATER_AGE_S={settings.gateway_wait_s / 2:g}",
        )
    for name, seconds, why in (
        ("VISIBILITY_TIMEOUT", settings.visibility_timeout_s, "Celery delivers such a chunk again while it is judged"),
        ("BULK_LEASE", settings.bulk_lease_s, "if Redis loses its data, such a chunk counts as lost and is run twice"),
        ("DRAIN", settings.drain_s, "a worker that stops gives such a chunk back half done, and it is run again"),
    ):
        if seconds < slowest_chunk_s:
            yield warning(
                "settings",
                f"LIBRA_{name}_S ({seconds:g}) is below the {slowest_chunk_s:,.0f} s that the slowest chunk of the "
                "last day took",
                why=why,
                do=f"LIBRA_{name}_S={int(2 * slowest_chunk_s)}, or fewer items in a chunk (LIBRA_CHUNK_ITEMS)",
            )
