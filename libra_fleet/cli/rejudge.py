"""Judging stored items again: by another guard as child runs, or the dead items of a run once more."""

from __future__ import annotations

import itertools
from datetime import datetime

import click

from infra.errors import UsageError
from infra.ledger import intake
from infra.ledger.items import dead_of, items_of, stock_of
from infra.ledger.runs import live_runs_since, open_child, run_status
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import (
    GuardChoice,
    guard_option,
    json_option,
    limit_option,
    mode_for,
    mode_option,
    timestamp,
)
from libra_fleet.cli.show import out, print_json, print_listing, run_facts, say
from producer.intake.submit import seal, submit
from schemas.messages import Lane


@click.command()
@guard_option
@mode_option
@click.option("--run", "run", metavar="RUN", help="All items of this run.")
@click.option("--since", metavar="WHEN", callback=timestamp, help="Live items settled since then: 7d, 12h, a date.")
@json_option
def rejudge(*, guard: GuardChoice, mode: str | None, run: str | None, since: datetime | None, as_json: bool) -> None:
    """Judge stored items again with another guard, as child runs.

    Each run that holds such items gets one child run, whose id is printed. The new verdicts are stored alongside the
    old ones; actions stay as they are, and items on which the guards disagree enter the review queue. The same command
    again goes on with what was interrupted.
    """
    if (run is None) == (since is None):
        raise UsageError("give --run or --since")
    with connected() as found:
        parents = live_runs_since(found.engine, since) if since else [run_status(found.engine, str(run)).id]
        if not parents:
            raise UsageError("no live item settled since then")
        for parent in parents:  # all are seen to before anything is submitted: half of a comparison misleads
            stock = stock_of(found.engine, parent, since)
            if stock.scrubbed:
                raise UsageError(
                    f"the texts of {stock.scrubbed:,} of {stock.items:,} items of run {parent} were scrubbed by "
                    "retention: nothing was submitted; a later --since may still hold texts"
                )
            if not stock.items:
                raise UsageError(f"run {parent} holds no item")
        made = []
        for parent in parents:
            spec = guard.spec(mode_for(guard, mode), f"run:{parent}", lane=Lane.BULK, parent=parent)
            run_id = open_child(found.engine, parent, spec.guard, spec.mode) or intake.create_run(found.engine, spec)
            accepted = submit(found, run_id, spec, items_of(found.engine, parent, since))
            seal(found, run_id)
            say(f"{accepted:,} items of run {parent} submitted; follow them with: libra run watch {run_id}")
            made.append(run_id)
        if as_json:
            print_json([run_facts(run_status(found.engine, run_id)) for run_id in made])
        else:
            click.echo("\n".join(made))


@click.command(name="list")
@click.argument("run")
@limit_option
@json_option
def list_dead(*, run: str, limit: int, as_json: bool) -> None:
    """List the dead items of a run without their texts."""
    with connected() as found:
        status = run_status(found.engine, run)
        rows = list(dead_of(found.engine, status.id, limit=limit))
    if as_json:
        print_json([{"id": row.item.id, "reason": row.reason, "attempts": row.attempts} for row in rows])
        return
    if rows:
        print_listing(("item", "attempts", "reason"), [(row.item.id, str(row.attempts), row.reason) for row in rows])
    else:
        out.print(f"nothing died in run {status.name}")
    if status.counts.dead > len(rows):
        say(f"… and {status.counts.dead - len(rows):,} more (--limit)")


@click.command()
@click.argument("run")
@click.argument("item")
def show_dead(*, run: str, item: str) -> None:
    """Print one dead item with its text as JSON."""
    with connected() as found:
        status = run_status(found.engine, run)
        row = next((row for row in dead_of(found.engine, status.id) if row.item.id == item), None)
    if row is None:
        raise UsageError(f"no item {item!r} died in run {status.name}")
    print_json({"reason": row.reason, "attempts": row.attempts, **row.item.model_dump(mode="json")})


@click.command()
@click.argument("run")
@click.option("--name", help="A name for the new run.")
@json_option
def retry_dead(*, run: str, name: str | None, as_json: bool) -> None:
    """Submit a run's dead items again, as a run of their own.

    A dead item stays dead in its run, whatever comes later.
    """
    with connected() as found:
        status = run_status(found.engine, run)
        if not status.counts.dead:
            raise UsageError(f"nothing died in run {status.name}")
        if scrubbed := sum(not (row.item.question or row.item.response) for row in dead_of(found.engine, status.id)):
            raise UsageError(f"the texts of {scrubbed:,} dead items of run {status.name} were scrubbed; nothing to try")
        spec = status.spec.model_copy(update={"source": f"dead:{status.id}", "repeat": 1, "limit": None})
        run_id = intake.create_run(found.engine, spec, name=name)
        # Each item once, however many of its iterations died.
        by_item = itertools.groupby(dead_of(found.engine, status.id), key=lambda row: row.seq)
        accepted = submit(found, run_id, spec, (next(same).item for _, same in by_item))
        seal(found, run_id)
        made = run_status(found.engine, run_id)
    say(f"{accepted:,} items submitted again; follow them with: libra run watch {run_id}")
    if as_json:
        print_json(run_facts(made))
    else:
        click.echo(run_id)


@click.command()
@json_option
def settle_kept(*, as_json: bool) -> None:
    """Have verdicts settled that no collector could settle.

    `libra fleet status` counts them, and the collectors' logs say why each was kept: mend that first. Verdicts that
    fail again are kept again.
    """
    with connected() as found:
        chunks = found.coordination.dead_letters.put_back(found.publisher)
    if as_json:
        print_json({"chunks": chunks})
    else:
        say(f"{chunks:,} judged chunks are on their way to the collectors")
