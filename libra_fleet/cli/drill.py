"""`libra fleet drill`: break a fleet on purpose, and prove that nothing was lost or doubled."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psycopg
import redis
import sqlalchemy as sa
from psycopg import sql

from infra.errors import RunError, ServerError, UsageError
from infra.servers.embedded import EmbeddedServers
from infra.servers.services import Services
from infra.settings import Settings, load_settings
from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import err, out
from libra_fleet.drill.disk import can_mount, small_disk
from libra_fleet.drill.drill import Drill, DrillOptions
from libra_fleet.drill.faults import FAULTS, Mix, Needs, everything, parse_mix
from libra_fleet.drill.ground import forget_namespace
from libra_fleet.drill.report import show


@click.command()
@click.option("--faults", type=click.IntRange(min=1), help="So many faults. Default: 20, without --duration.")
@click.option("--duration", type=click.FloatRange(min=1), metavar="SECONDS", help="Faults for so long.")
@click.option("--items", type=click.IntRange(min=1), default=2_000, show_default=True, help="At least so many items.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed brings the same faults.")
@click.option(
    "--mix",
    callback=lambda _, __, value: parse_mix(value) if value else None,
    help="Which faults, such as worker=3,valkey=1. Default: all, equally often.",
)
@click.option("--item-ms", type=click.FloatRange(min=0), default=8.0, show_default=True, help="Cost of an item.")
@click.option("--lease", type=click.FloatRange(min=0.5), default=3.0, show_default=True, help="Lease in seconds.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="So many workers.")
@click.option("--collectors", type=click.IntRange(min=1), default=2, show_default=True, help="So many collectors.")
@click.option("--list", "listed", is_flag=True, help="Name the faults and end.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Keep servers' data and logs here.")
@click.option(
    "--on-configured", is_flag=True, help="Drill on the configured servers, in a namespace and database of its own."
)
@json_option
@click.option("--out", "file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report as JSON.")
def drill(
    *,
    faults: int | None,
    duration: float | None,
    items: int,
    seed: int,
    mix: Mix | None,
    item_ms: float,
    lease: float,
    workers: int,
    collectors: int,
    listed: bool,
    state_dir: Path | None,
    on_configured: bool,
    as_json: bool,
    file: Path | None,
) -> None:
    """Break a fleet of the fake guard on purpose, and audit what it kept.

    Its processes, servers and work are broken on a schedule; exit 7 on any breach. `--list` names the faults.
    """
    if listed:
        for fault in FAULTS.values():
            out.print(f"{fault.name:<16} {fault.what}", highlight=False)
        return
    own_disk = not on_configured and state_dir is None and can_mount()
    options = DrillOptions(
        seed=seed,
        faults=faults if faults or duration else 20,
        duration_s=duration,
        items=items,
        round_items=min(items, 1_000),
        item_ms=item_ms,
        lease_s=lease,
        workers=workers,
        collectors=collectors,
        mix=mix or everything(own_servers=not on_configured, own_disk=own_disk),
    )
    if on_configured and any(FAULTS[name].needs is not Needs.NOTHING for name in options.mix):
        raise UsageError("a drill does not kill servers that are not its own: leave those out of --mix that need them")
    if not own_disk and "full-disk" in options.mix:
        raise UsageError("full-disk needs root on Linux, servers of the drill's own, and no --state-dir")
    with _servers(load_settings(), state_dir, on_configured=on_configured) as (found, folder, own_state):
        err.print(f"drill with seed {seed} below {folder}")
        report = Drill(found, folder, options, state_dir=own_state, say=err.print).run()
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(report.to_json() + "\n", encoding="utf-8")
    if as_json:
        click.echo(report.to_json())
    else:
        show(report, out)
    if report.breaches:
        raise RunError(f"the drill broke {len(report.breaches)} promises; seed {seed}")


@contextmanager
def _servers(
    settings: Settings, state_dir: Path | None, *, on_configured: bool
) -> Iterator[tuple[Services, Path, Path | None]]:
    """Servers that hold nothing else, a folder for logs and data, and the state folder of servers of our own."""
    with tempfile.TemporaryDirectory(prefix="libra-drill-") as temporary:
        folder = state_dir or Path(temporary)
        Path(temporary).chmod(0o711)  # Postgres, which runs as another user under root, walks through
        folder.mkdir(parents=True, exist_ok=True)
        if not on_configured:
            if settings.redis_url or settings.database_url:
                raise UsageError(
                    "servers are configured (LIBRA_REDIS_URL, LIBRA_DATABASE_URL): unset both to drill on embedded "
                    "ones, or say --on-configured to drill there, in a Redis namespace and a database made for it"
                )
            with (
                small_disk(folder / "servers", keep=state_dir is not None),
                EmbeddedServers(folder / "servers", keep=state_dir is not None) as urls,
            ):
                found = Services(settings, urls.redis_url, urls.database_url, embedded=True)
                yield found, folder, folder / "servers"
                found.engine.dispose()
            return
        name = f"drill_{secrets.token_hex(4)}"
        url = sa.make_url(settings.require_database_url()).set(drivername="postgresql")
        redis_url = settings.require_redis_url()
        admin = url.render_as_string(hide_password=False)
        try:
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.Error as error:
            raise ServerError(f"cannot make a database for the drill: {error}") from error
        own = settings.model_copy(update={"namespace": name})
        found = Services(own, redis_url, url.set(database=name).render_as_string(hide_password=False), embedded=True)
        try:
            yield found, folder, None
        finally:
            found.engine.dispose()
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            with redis.Redis.from_url(redis_url) as client:
                forget_namespace(client, name)
