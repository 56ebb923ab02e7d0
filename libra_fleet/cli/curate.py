"""`libra curate`: training rows in stages, each a file of JSON lines in one folder."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import out, print_json, say
from producer.curation import deciding, making
from producer.curation.shown import folder_argument
from producer.curation.status import status_of
from producer.curation.synthetic.phrases import elements as grammar_elements
from producer.curation.synthetic.phrases import topics


@click.group()
def curate() -> None:
    """Make training rows: combine, queries, augment, responses, annotate; or real rows and a selection of them.

    DIR holds one file of JSON lines per stage. A stage goes on where it was stopped.
    """


@curate.command()
@json_option
def elements(*, as_json: bool) -> None:
    """Show what queries are made of: phrases per sub-category, task types, places and events."""
    parts = grammar_elements()
    rows = [
        {
            "scenario": topic.scenario_zh,
            "sub_category": topic.kind.code,
            "harmful": len(topic.behaviours),
            "harmless": len(topic.benign),
            "words": len(topic.words),
        }
        for topic in topics()
    ]
    if as_json:
        sizes = {"task_types": list(parts.task_types), "places": list(parts.places), "events": list(parts.events)}
        print_json({"sub_categories": rows, **sizes})
        return
    table = Table("scenario", "sub-category", "harmful aims", "harmless aims", "words", box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    out.print(table)
    out.print(f"{len(parts.task_types)} task types, {len(parts.places)} places, {len(parts.events)} events")


@curate.command()
@folder_argument
@json_option
def status(*, folder: Path, as_json: bool) -> None:
    """Show what each stage has: rows, and how many by label, source, licence, generator and reason."""
    stages = status_of(folder)
    if as_json:
        print_json([stage._asdict() for stage in stages])
        return
    if not stages:
        say(f"{folder}: no stage has begun; the first one is `libra curate combine`")
    for stage in stages:
        out.print(f"[bold]{stage.name}[/] {stage.rows:,} rows{'' if stage.done else ', unfinished'}")
        for thing, counts in stage.counts.items():
            out.print(
                f"  {thing}: {', '.join(f'{value} {count:,}' for value, count in counts.items())}", highlight=False
            )


for _command in (making.combine, making.queries_, making.augment, making.responses_):
    curate.add_command(_command)
for _command in (deciding.annotate, deciding.real, deciding.select):
    curate.add_command(_command)
