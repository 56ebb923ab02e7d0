"""`libra dead`: the items that died, why, and another try in a run of their own.

A dead item stays dead in its run, whatever comes later; trying again is a new run over the same items.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from infra.errors import UsageError
from infra.ledger import intake, reading
from infra.ledger.dead import DeadItem, dead_of
from libra_fleet.cli.context import connected
from producer.intake.submit import seal, submit
from schemas.items import Item

_out: Final = Console(highlight=False)
_err: Final = Console(stderr=True, highlight=False)


@click.group()
def dead() -> None:
    """Items that died: list them, show one, try them again."""


@dead.command(name="list")
@click.argument("run")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def list_(*, run: str, limit: int, as_json: bool) -> None:
    """List the dead items of a run; their texts are not shown."""
    with connected() as found:
        status = reading.run_status(found.engine, run)
        rows = list(dead_of(found.engine, status.id, limit=limit))
    if as_json:
        facts = [{"id": row.item.id, "reason": row.reason, "attempts": row.attempts} for row in rows]
        click.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    table = Table("item", "attempts", "reason", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.item.id, str(row.attempts), row.reason)
    _out.print(table if rows else f"nothing died in run {status.name}")
    if status.counts.dead > len(rows):
        _err.print(f"… and {status.counts.dead - len(rows):,} more (--limit)")


@dead.command()
@click.argument("run")
@click.argument("item")
def show(*, run: str, item: str) -> None:
    """Print one dead item with its text, as JSON."""
    with connected() as found:
        status = reading.run_status(found.engine, run)
        row = next((row for row in dead_of(found.engine, status.id) if row.item.id == item), None)
    if row is None:
        raise UsageError(f"no item {item!r} died in run {status.name}")
    facts = {"reason": row.reason, "attempts": row.attempts, **row.item.model_dump(mode="json")}
    click.echo(json.dumps(facts, ensure_ascii=False, indent=2))


@dead.command()
@click.argument("run")
@click.option("--name", help="A name for the new run.")
def retry(*, run: str, name: str | None) -> None:
    """Submit a run's dead items again, as a run of their own; print its id."""
    with connected() as found:
        status = reading.run_status(found.engine, run)
        if not status.counts.dead:
            raise UsageError(f"nothing died in run {status.name}")
        if scrubbed := sum(not row.item.response for row in dead_of(found.engine, status.id)):
            raise UsageError(f"the texts of {scrubbed:,} dead items of run {status.name} were scrubbed; nothing to try")
        spec = status.spec.model_copy(update={"source": f"dead:{status.id}", "repeat": 1, "limit": None})
        run_id = intake.create_run(found.engine, spec, name=name)
        accepted = submit(found, run_id, spec, _items(dead_of(found.engine, status.id)))
        seal(found, run_id)
    _err.print(f"{accepted:,} items submitted again; follow them with: [bold]libra bench watch {run_id}[/]")
    click.echo(run_id)


def _items(rows: Iterator[DeadItem]) -> Iterator[Item]:
    """Each item once, however many of its iterations died."""
    for _, same in itertools.groupby(rows, key=lambda row: row.seq):
        yield next(same).item
