"""What a run of the bench is asked for, as the options of a command line order it."""

from __future__ import annotations

import click
from click.testing import CliRunner

from libra_fleet.cli.options import RunRequest
from libra_fleet.cli.orders import takes_order
from schemas.runs import RunSpec


def ordered(*options: str) -> RunSpec | str:
    """The spec that these options order, or what is said against them."""
    orders: list[RunRequest] = []

    @click.command()
    @takes_order
    def command(*, order: RunRequest) -> None:
        orders.append(order)

    done = CliRunner().invoke(command, ["demo", *options])
    return orders[0].spec if orders else done.output
