"""`libra data purge`: scrubbing user text that has been kept long enough."""

from __future__ import annotations

from datetime import timedelta

import click

from infra.ledger import retention
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import age, json_option
from libra_fleet.cli.show import print_json


@click.command()
@click.option("--older-than", metavar="AGE", callback=age, required=True, help="Such as 30d, 12h or 90m.")
@click.option("--delete", is_flag=True, help="Delete ended runs altogether, verdicts and reports included.")
@json_option
def purge(*, older_than: timedelta, delete: bool, as_json: bool) -> None:
    """Scrub the texts of runs and live items that settled long enough ago.

    Ids, labels, metrics, content hashes and receipts stay, unless the runs are deleted; pending items are not touched.
    """
    with connected() as found:
        purged = retention.purge(found.engine, older_than, delete=delete)
    if as_json:
        print_json({"items": purged.items, "runs": purged.runs, "deleted": delete})
        return
    done = "deleted" if delete else "scrubbed"
    click.echo(f"{purged.items:,} items {done}; {purged.runs:,} ended runs were old enough")
