"""`libra fleet status [--watch] [--json]`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Final

import click
from rich.live import Live

from infra.errors import ServerError
from infra.fleet import look
from infra.servers.services import Services
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import out, print_json
from libra_fleet.machine.view import status_facts, status_view
from schemas.fleet import FleetSnapshot

_EVERY_S: Final = 2.0


@click.command()
@click.option("--watch", is_flag=True, help="Look again every 2 seconds until Ctrl-C; with --json, a line each.")
@json_option
def status(*, watch: bool, as_json: bool) -> None:
    """Show queues, workers, collectors and open runs, and say what is wrong."""
    with connected() as found:
        if not watch:
            _print(_look(found), as_json=as_json)
            return
        try:
            _watch(found, as_json=as_json)
        except KeyboardInterrupt:
            return


def _print(fleet: FleetSnapshot, *, as_json: bool) -> None:
    if as_json:
        print_json(status_facts(fleet))
    else:
        out.print(status_view(fleet))


def _watch(found: Services, *, as_json: bool) -> None:
    if as_json:
        for fleet in _looks(found):
            click.echo(json.dumps(status_facts(fleet), ensure_ascii=False))
        return
    with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
        for fleet in _looks(found):
            live.update(status_view(fleet), refresh=True)


def _looks(found: Services) -> Iterator[FleetSnapshot]:
    while True:
        yield _look(found)
        time.sleep(_EVERY_S)


def _look(found: Services) -> FleetSnapshot:
    """The whole fleet.

    Raises:
        ServerError: a server is away; half a status would pass for a whole one.
    """
    found.coordination  # noqa: B018 - one that cannot be reached is named at once, without waiting for the other
    fleet = look(found)
    if fleet.away:
        raise ServerError("; ".join(fleet.away.values()))
    return fleet
