"""The run that options of a command line ask for."""

from __future__ import annotations

import click
from click.testing import CliRunner

from libra_fleet.cli.options import RunRequest, takes_request
from schemas.runs import RunSpec


def requested(*options: str) -> RunSpec | str:
    """The spec that these options ask for, or the error they meet."""
    requests: list[RunRequest] = []

    @click.command()
    @takes_request
    def command(*, request: RunRequest) -> None:
        requests.append(request)

    done = CliRunner().invoke(command, ["demo", *options])
    return requests[0].spec if requests else done.output
