"""`libra remoderate`: another guard judges stored items again, as child runs. What was decided stays as it is."""

from __future__ import annotations

from datetime import datetime

import click

from infra.errors import UsageError
from infra.ledger import children, intake, reading
from infra.servers.services import Services
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import GuardChoice, guard_option, json_option, mode_for, mode_option
from libra_fleet.cli.show import print_json, run_facts, say
from libra_fleet.cli.timestamps import moment
from producer.intake.submit import seal, submit
from schemas.messages import Lane
from schemas.runs import RunSpec


@click.command()
@guard_option
@mode_option
@click.option("--run", "run", metavar="RUN", help="All items of this run.")
@click.option("--since", metavar="WHEN", callback=moment, help="Live items settled since then: 7d, 12h, a date.")
@json_option
def remoderate(*, guard: GuardChoice, mode: str | None, run: str | None, since: datetime | None, as_json: bool) -> None:
    """Judge stored items again with another guard, as a child run of each run they are in; print its id.

    The new verdicts stand beside the old ones; actions stay as they are, and where the guards disagree the items come
    into the review queue. The same command again goes on with what was interrupted.
    """
    if (run is None) == (since is None):
        raise UsageError("give --run or --since")
    with connected() as found:
        parents = _parents(found, run, since)
        _require_texts(found, parents, since)
        made = [_judge_again(found, parent, guard, mode, since) for parent in parents]
        if as_json:
            print_json([run_facts(reading.run_status(found.engine, run_id)) for run_id in made])
            return
        for run_id in made:
            click.echo(run_id)


def _parents(found: Services, run: str | None, since: datetime | None) -> list[str]:
    if run:
        return [reading.run_status(found.engine, run).id]
    parents = children.live_runs_since(found.engine, since) if since else []
    if not parents:
        raise UsageError("no live item settled since then")
    return parents


def _require_texts(found: Services, parents: list[str], since: datetime | None) -> None:
    """Refuse before anything is submitted: half of a comparison misleads."""
    for parent in parents:
        stock = children.stock_of(found.engine, parent, since)
        if stock.scrubbed:
            raise UsageError(
                f"the texts of {stock.scrubbed:,} of {stock.items:,} items of run {parent} were scrubbed by retention: "
                "nothing was submitted; a younger --since may hold texts still"
            )
        if not stock.items:
            raise UsageError(f"run {parent} holds no item")


def _judge_again(found: Services, parent: str, guard: GuardChoice, mode: str | None, since: datetime | None) -> str:
    spec = RunSpec(
        guard=guard.name,
        checkpoint=guard.checkpoint,
        mode=mode_for(guard, mode),
        lane=Lane.BULK,
        source=f"run:{parent}",
        parent=parent,
    )
    run_id = children.open_child(found.engine, parent, spec.guard, spec.mode)
    run_id = run_id or intake.create_run(found.engine, spec)
    accepted = submit(found, run_id, spec, children.items_of(found.engine, parent, since))
    seal(found, run_id)
    say(f"{accepted:,} items of run {parent} submitted; follow them with: libra bench watch {run_id}")
    return run_id
