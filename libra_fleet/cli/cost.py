"""`libra cost`: device seconds, tokens and, where a price is known, money, per 1,000 verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import click
from rich.table import Table
from rich.text import Text

from infra.errors import UsageError
from infra.ledger import costs, reading
from infra.ledger.costs import RunCost
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option, price_option
from libra_fleet.cli.show import out, print_json, say
from libra_fleet.cli.timestamps import moment
from producer.report.cost import amount_text, cost_facts
from schemas.runs import Cost

_SHARED = (
    "device time of a batch is shared by its prompts in proportion to the tokens that had to run; what the cache "
    "answered cost nothing; idle devices, loading and what was judged in vain are not in it"
)


@click.command()
@click.option("--run", metavar="RUN", help="Of this run, by name or id.")
@click.option("--tenant", metavar="NAME", help="Of this tenant, run by run.")
@click.option("--since", callback=moment, metavar="WHEN", help="Of runs begun since: 30d, 12h, 2026-11-24.")
@price_option
@json_option
def cost(
    *, run: str | None, tenant: str | None, since: datetime | None, price_per_device_hour: float | None, as_json: bool
) -> None:
    """Show device time, tokens and money per 1,000 verdicts: by tenant and guard, or run by run."""
    if run and (tenant or since):
        raise click.UsageError("--run names one run: it goes with neither --tenant nor --since")
    with connected() as found:
        price = found.settings.price_per_device_hour if price_per_device_hour is None else price_per_device_hour
        if run:
            status = reading.run_status(found.engine, run)
            rows = [((status.name, status.spec.guard), costs.run_cost(found.engine, status.id))]
        else:
            spent = costs.run_costs(found.engine, tenant=tenant, since=since)
            rows = [((one.name, one.guard), one.cost) for one in spent] if tenant else _by_tenant(spent)
        if tenant and not rows:
            raise UsageError(f"no run of tenant {tenant!r} began then")
        if as_json:
            key = "run" if run or tenant else "tenant"
            print_json([{key: who or None, "guard": guard, **cost_facts(one, price)} for (who, guard), one in rows])
        elif rows:
            out.print(_table("run" if run or tenant else "tenant", rows, price))
            say(_SHARED)
        else:
            say("nothing has been judged yet")


def _by_tenant(spent: Iterable[RunCost]) -> list[tuple[tuple[str, str], Cost]]:
    sums: dict[tuple[str, str], Cost] = {}
    for one in spent:
        key = (one.tenant or "", one.guard)
        sums[key] = sums.get(key, Cost()) + one.cost
    return sorted(sums.items(), key=lambda entry: (-entry[1].device_s, entry[0]))


def _table(first: str, rows: Iterable[tuple[tuple[str, str], Cost]], price: float | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold")
    table.add_column("guard", no_wrap=True)
    per_1000 = ["device s/1,000", "tokens/1,000", *(["money/1,000"] if price is not None else [])]
    for heading in ("verdicts", "device s", *per_1000):
        table.add_column(heading, justify="right", no_wrap=True)
    for (who, guard), cost in rows:
        tokens = cost.prompt_tokens + cost.new_tokens
        amounts = [cost.device_s, tokens, *([cost.money(price)] if price is not None else [])]
        measured = "" if cost.measured == cost.verdicts else f" ({cost.measured:,} measured)"
        table.add_row(
            Text(who or "–"),
            Text(guard),
            f"{cost.verdicts:,}{measured}",
            f"{cost.device_s:,.1f}",
            *("–" if (value := cost.per_1000(amount)) is None else amount_text(value) for amount in amounts),
        )
    return table
