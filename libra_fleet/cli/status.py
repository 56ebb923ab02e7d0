"""`libra fleet status` and `libra fleet doctor`."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Final

import click
from rich.live import Live
from rich.text import Text

from infra.errors import GuardError, ServerError
from infra.fleet import look
from infra.settings import load_settings
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import out, print_json
from libra_fleet.doctor import Level
from libra_fleet.doctor.examination import examine
from libra_fleet.machine.view import status_facts, status_view

_EVERY_S: Final = 2.0


@click.command()
@click.option("--watch", is_flag=True, help="Look again every 2 seconds until Ctrl-C; with --json, a line each.")
@json_option
def status(*, watch: bool, as_json: bool) -> None:
    """Show queues, workers, collectors and open runs, and say what is wrong."""
    live = Live(console=out, auto_refresh=False, screen=out.is_terminal) if watch and not as_json else None
    ends_by = [KeyboardInterrupt] if watch else []
    with connected() as found, suppress(*ends_by), live or nullcontext():
        while True:
            found.coordination  # noqa: B018 - one that cannot be reached is named at once, without waiting for the other
            fleet = look(found)
            if fleet.away:  # half a status would pass for a whole one
                raise ServerError("; ".join(fleet.away.values()))
            if live:
                live.update(status_view(fleet), refresh=True)
            elif not as_json:
                out.print(status_view(fleet))
            else:
                click.echo(json.dumps(status_facts(fleet), ensure_ascii=False, indent=None if watch else 2))
            if not watch:
                return
            time.sleep(_EVERY_S)


_MARKS: Final = {Level.ERROR: ("✗", "bold red"), Level.WARNING: ("!", "yellow"), Level.GOOD: ("✓", "green")}


@click.command()
@click.option(
    "--guard", default="libra-tiny", show_default=True, metavar="NAME[=CHECKPOINT]", help="Guard to run here."
)
@click.option("--devices", default="all", show_default=True, help="Devices it is to run on: all, cpu, 0,1.")
@json_option
@click.pass_context
def doctor(context: click.Context, *, guard: str, devices: str, as_json: bool) -> None:
    """Look for problems of machine, servers, settings and fleet.

    Changes nothing; exit 5 if the guard's checkpoint cannot be loaded, 1 on any other error.
    """
    name, _, location = guard.partition("=")
    findings = list(examine(load_settings(), guard=name, location=location or None, devices=devices))
    counts = Counter(finding.level for finding in findings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        lines = []
        for finding in findings:
            mark, style = _MARKS[finding.level]
            lines.append(Text(f"{mark} {finding.check}: ", style=style).append(finding.what, style="not bold default"))
            if finding.level is not Level.GOOD:
                lines += [Text(f"    why: {finding.why}", style="dim"), Text(f"    do:  {finding.do}")]
        lines.append(Text(f"{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings", style="bold"))
        for line in lines:
            out.print(line, soft_wrap=True)
    refused = any(finding.level is Level.ERROR and finding.check == "checkpoint" for finding in findings)
    context.exit(GuardError.exit_code if refused else int(counts[Level.ERROR] > 0))
