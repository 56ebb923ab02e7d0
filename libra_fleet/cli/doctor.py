"""`libra fleet doctor`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from infra.settings import load_settings
from libra_fleet.doctor import Finding, Level
from libra_fleet.doctor.examination import examine

_MARKS: Final = {Level.ERROR: ("✗", "bold red"), Level.WARNING: ("!", "yellow"), Level.GOOD: ("✓", "green")}


@click.command()
@click.option(
    "--guard", default="libra-tiny", show_default=True, metavar="NAME[=CHECKPOINT]", help="Guard to run here."
)
@click.option("--devices", default="all", show_default=True, help="Devices it is to run on: all, cpu, 0,1.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.pass_context
def doctor(context: click.Context, *, guard: str, devices: str, as_json: bool) -> None:
    """Look for problems of machine, servers, settings and fleet.

    Changes nothing; exit 1 on an error.
    """
    name, _, location = guard.partition("=")
    findings = list(examine(load_settings(), guard=name, location=location or None, devices=devices))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        _show(findings)
    context.exit(int(any(finding.level is Level.ERROR for finding in findings)))


def _show(findings: Sequence[Finding]) -> None:
    out = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        mark, style = _MARKS[finding.level]
        out.print(Text(f"{mark} {finding.check}: ", style=style).append(finding.what, style="not bold default"))
        if finding.level is not Level.GOOD:
            out.print(Text(f"    why: {finding.why}", style="dim"))
            out.print(Text(f"    do:  {finding.do}"))
    counts = Counter(finding.level for finding in findings)
    out.print(Text(f"{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings", style="bold"))
