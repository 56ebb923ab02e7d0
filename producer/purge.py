"""`libra purge`: user text that has been kept long enough."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

import click

from infra.ledger import retention
from infra.services import services
from infra.settings import load_settings

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


def _age(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([dhm])", value)
    if match is None:
        raise click.BadParameter(f"{value!r}: expected a number of days, hours or minutes, such as 30d, 12h, 90m")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.command()
@click.option("--older-than", metavar="AGE", callback=_age, required=True, help="Such as 30d, 12h or 90m.")
@click.option("--delete", is_flag=True, help="Delete ended runs altogether, verdicts and reports included.")
def purge(*, older_than: timedelta, delete: bool) -> None:
    """Scrub the texts of runs that ended, and of live items that settled, so long ago.

    Ids, labels, metrics, content hashes and receipts stay, unless the runs are deleted; pending items are not touched.
    """
    with services(load_settings()) as found:
        purged = retention.purge(found.engine, older_than, delete=delete)
    done = "deleted" if delete else "scrubbed"
    click.echo(f"{purged.items:,} items {done}; {purged.runs:,} ended runs were old enough")
