"""`libra purge`: user text that has been kept long enough."""

from __future__ import annotations

from datetime import timedelta

import click

from infra.ledger import retention
from libra_fleet.cli.context import connected
from libra_fleet.cli.timestamps import age


@click.command()
@click.option("--older-than", metavar="AGE", callback=age, required=True, help="Such as 30d, 12h or 90m.")
@click.option("--delete", is_flag=True, help="Delete ended runs altogether, verdicts and reports included.")
def purge(*, older_than: timedelta, delete: bool) -> None:
    """Scrub the texts of runs that ended, and of live items that settled, so long ago.

    Ids, labels, metrics, content hashes and receipts stay, unless the runs are deleted; pending items are not touched.
    """
    with connected() as found:
        purged = retention.purge(found.engine, older_than, delete=delete)
    done = "deleted" if delete else "scrubbed"
    click.echo(f"{purged.items:,} items {done}; {purged.runs:,} ended runs were old enough")
