"""The `libra` command: a table of commands, of which only the one that is called is loaded."""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Final

import click

from infra import tracing
from infra.errors import (
    EndpointNotFoundError,
    KeyNotFoundError,
    LedgerOutdatedError,
    LibraError,
    PolicyNotFoundError,
    RunNotFoundError,
    ServerError,
    UsageError,
)
from infra.log import configure_logging
from infra.process import die_with_parent
from infra.settings import load_settings
from schemas.fleet import ProcessKind

_COMMANDS: Final = {
    "bench": "libra_fleet.cli.run:bench",
    "capacity": "libra_fleet.cli.capacity.command:capacity",
    "cascade": "libra_fleet.cli.cascade:cascade",
    "collector": "libra_fleet.cli.worker:collector",
    "cost": "libra_fleet.cli.cost:cost",
    "curate": "libra_fleet.cli.curate:curate",
    "dead": "libra_fleet.cli.dead:dead",
    "doctor": "libra_fleet.cli.doctor:doctor",
    "drill": "libra_fleet.cli.drill:drill",
    "export": "libra_fleet.cli.export:export",
    "gateway": "libra_fleet.cli.gateway:gateway",
    "guards": "libra_fleet.cli.guards:guards",
    "import": "libra_fleet.cli.import_:import_",
    "infer": "libra_fleet.cli.infer:infer",
    "judge": "libra_fleet.cli.run:judge",
    "keys": "libra_fleet.cli.keys:keys",
    "metrics": "libra_fleet.cli.metrics:metrics",
    "metrics-exporter": "libra_fleet.cli.exporter:metrics_exporter",
    "policy": "libra_fleet.cli.policy:policy",
    "purge": "libra_fleet.cli.purge:purge",
    "remoderate": "libra_fleet.cli.remoderate:remoderate",
    "status": "libra_fleet.cli.status:status",
    "submit": "libra_fleet.cli.submit:submit",
    "train": "libra_fleet.cli.train:train",
    "up": "libra_fleet.cli.up:up",
    "verify": "libra_fleet.cli.verify:verify",
    "webhooks": "libra_fleet.cli.webhooks:webhooks",
    "worker": "libra_fleet.cli.worker:worker",
}
"""Where each command is: module and object, loaded when the command is called."""

_ADVICE: Final = {
    RunNotFoundError: "; `libra bench list` shows those there are",
    KeyNotFoundError: "; `libra keys list` shows those there are",
    PolicyNotFoundError: "; `libra policy list` shows those there are",
    EndpointNotFoundError: "; `libra webhooks endpoints list` shows those there are",
    LedgerOutdatedError: ": run `libra migrate` once",
}
"""What to type next, after an error of the ledger, which knows no commands."""

_INTERRUPTED: Final = 130


class _LazyGroup(click.Group):
    """Knows its commands by name; imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        try:
            command: click.Command = getattr(import_module(module), name)
        except ImportError as error:
            return _unavailable(cmd_name, error)
        return command


def _unavailable(name: str, error: ImportError) -> click.Command:
    """Stands in for a command whose module cannot be imported, so that the others and --help still work."""
    problem = f"not available here: {error}"

    @click.command(name=name, short_help=problem, context_settings={"ignore_unknown_options": True})
    @click.argument("_", nargs=-1)
    def unavailable(**_: object) -> None:
        raise UsageError(f"{name} is {problem}; is an extra missing, such as pip install 'libra-fleet[worker]'?")

    return unavailable


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("libra-fleet"), prog_name="libra")
@click.pass_context
def libra(context: click.Context) -> None:
    """Asynchronous content moderation on your own GPUs."""
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    tracing.start(settings.otlp_endpoint, f"libra-{context.invoked_subcommand}")
    if settings.parent_pid is not None:
        die_with_parent(parent_pid=settings.parent_pid)


@libra.command()
def migrate() -> None:
    """Bring the configured Postgres to the ledger's present shape."""
    from infra.ledger.engine import HEAD, open_ledger, upgrade  # noqa: PLC0415 - only this command needs a database

    settings = load_settings()
    upgrade(open_ledger(settings.require_database_url(), wait_s=settings.wait_for_servers_s))
    click.echo(f"ledger at revision {HEAD}")


@libra.command()
@click.option("--worker", "role", flag_value="worker", help="Also ask whether this host's worker is ready.")
@click.option("--collector", "role", flag_value="collector", help="Also ask whether this host's collector is ready.")
@click.option("--webhooks", "role", flag_value="webhooks", help="Also ask whether this host's sender of webhooks is.")
@click.option("--gateway", "role", flag_value="gateway", help="Also ask whether this host's gateway is ready.")
def health(*, role: ProcessKind | None) -> None:
    """Exit 0 if the configured Redis answers, else 4."""
    from infra.coordination.presence import is_ready  # noqa: PLC0415 - keeps `libra --help` quick
    from infra.coordination.store import open_coordination  # noqa: PLC0415

    settings = load_settings()
    coordination = open_coordination(
        settings.require_redis_url(), settings.model_copy(update={"wait_for_servers_s": 0})
    )
    host = socket.gethostname()
    if role and not is_ready(coordination.presence.announced(), role, host):
        raise ServerError(f"no {role} of {host} is ready")
    click.echo(f"{role or 'Redis'} is ready")


def _require_text(arguments: list[str]) -> None:
    """Refuse arguments that are not valid text: they could be neither stored nor shown.

    Raises:
        UsageError: one is not.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"not valid UTF-8: {argument.encode(errors='replace').decode()}") from error


def main() -> None:
    """Run the command line; every error of ours becomes one line and its exit code."""
    try:
        _require_text(sys.argv)
        libra.main(prog_name="libra", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough; Python must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_INTERRUPTED)
    except LibraError as error:
        click.secho(f"libra: {error}{_ADVICE.get(type(error), '')}", fg="red", err=True)
        sys.exit(error.exit_code)
