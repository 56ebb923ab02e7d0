"""The stages that decide: two judges annotate, public sets are read, hard items are selected from the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from infra.ledger import reading
from infra.ledger.hard import judged_items
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, guard_named, takes_fleet
from libra_fleet.cli.show import say
from libra_fleet.cli.timestamps import moment
from producer.curation.agreement import sorted_out
from producer.curation.asking import ask, batches, verdicts_of
from producer.curation.real import hard_rows, real_rows
from producer.curation.rows import Row, item_of
from producer.curation.shown import folder_argument, say_done
from producer.curation.stage import Placed, carry_out, in_file, rows_of

_FILES: Final = {"responses": ("annotated", "dropped"), "selected": ("selected-annotated", "selected-dropped")}
"""By what is annotated: where agreement goes, and the rest."""

_origin_option: Final = click.option("--origin", help="Who made the texts, where their source does not say it.")
_licence_option: Final = click.option("--licence", help="Under which licence the rows are, likewise.")


def _judges(_: click.Context, __: click.Parameter, value: str) -> tuple[GuardChoice, GuardChoice]:
    found = [guard_named(name) for name in value.split(",")]
    if len(found) != 2 or found[0].name == found[1].name:
        raise click.BadParameter("two different guards, with a comma between")
    return found[0], found[1]


@click.command()
@folder_argument
@click.option("--judges", metavar="A,B", callback=_judges, required=True, help="Two guards; NAME=CHECKPOINT as well.")
@click.option("--of", "stage", type=click.Choice(list(_FILES)), default="responses", show_default=True)
@takes_fleet
def annotate(*, folder: Path, judges: tuple[GuardChoice, GuardChoice], stage: str, fleet: LocalFleetOptions) -> None:
    """Let two guards judge every answer: a row both agree on is kept with their label, any other put aside.

    Each judge's verdicts are a run of the fleet. Of `selected`, only rows without a label are judged.
    """
    agreed, aside = _FILES[stage]

    def unlabelled() -> Iterator[Row]:
        return (row for row in rows_of(folder, stage) if not row["label"])

    def make() -> Iterator[Placed]:
        with connected() as found:
            runs = {judge.name: ask(found, fleet, judge, lambda: map(item_of, unlabelled())) for judge in judges}
            for batch in batches(unlabelled()):
                ids = [row["id"] for row in batch]
                verdicts = {name: verdicts_of(found, run_id, ids) for name, run_id in runs.items()}
                yield from sorted_out(batch, verdicts, agreed, aside)

    made = carry_out(folder, agreed, {"judges": judges}, make, made_of=stage, beside=aside)
    say_done(folder, [agreed, aside], made=made)


@click.command()
@folder_argument
@click.argument("source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_origin_option
@_licence_option
def real(*, folder: Path, source: Path, origin: str | None, licence: str | None) -> None:
    """Read a labelled data set (JADE, COLD, your own records) as rows with their provenance and ids of their own."""
    options = {"origin": origin, "licence": licence}
    made = carry_out(
        folder, "real", options, lambda: in_file("real", real_rows(str(source), origin, licence)), made_of=source
    )
    say_done(folder, ["real"], made=made)


@click.command()
@folder_argument
@click.option("--run", "run", required=True, metavar="RUN", help="An ended or live run of the ledger.")
@click.option("--since", metavar="WHEN", callback=moment, help="Only items settled since then: 7d, 12h, a date.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 0.5),
    default=0.15,
    show_default=True,
    help="A p_unsafe so near to one half, or nearer, is a small margin.",
)
@_origin_option
@_licence_option
def select(
    *, folder: Path, run: str, since: datetime | None, margin: float, origin: str | None, licence: str | None
) -> None:
    """Take the hard items of a run: small margin, guards disagree, a human overruled, a known label missed.

    Guards disagree where a child run (`libra remoderate`) gave another label. A row has the human's label, else the
    known one, else none: `libra curate annotate --of selected` asks two judges about those.
    """
    with connected() as found:
        status = reading.run_status(found.engine, run)
        options = {"run": status.id, "margin": margin, "origin": origin, "licence": licence, "since": str(since)}
        rows = hard_rows(
            judged_items(found.engine, status.id, since),
            run_name=status.name,
            guard=status.spec.guard,
            margin=margin,
            origin=origin,
            licence=licence,
        )
        made = carry_out(folder, "selected", options, lambda: in_file("selected", rows))
    say_done(folder, ["selected"], made=made)
    chosen = [row["provenance"]["stage"].removeprefix("select:").split("+") for row in rows_of(folder, "selected")]
    for reason, count in Counter(reason for reasons in chosen for reason in reasons).most_common():
        say(f"  {reason}: {count:,}")
