"""`libra run cost`: device seconds, tokens and money per 1,000 verdicts, or the devices that a rate needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

import click
import sqlalchemy as sa
from rich.table import Table
from rich.text import Text

from infra.errors import UsageError
from infra.ledger.runs import run_status
from infra.ledger.stats import cached_count, run_cost, run_costs
from infra.servers.services import Services
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option, price_option, timestamp
from libra_fleet.cli.show import out, print_json, say
from producer.report.view import amount_text, cost_facts
from schemas.messages import Lane
from schemas.runs import Cost

_SHARED: Final = (
    "device time of a batch is shared by its prompts in proportion to the tokens that had to run; answers from the "
    "cache cost nothing; idle devices, loading and discarded work are not included"
)
_ENOUGH: Final = 100
"""Judgements below which a run says little about a device."""


@click.command()
@click.option("--run", metavar="RUN", help="Of this run, by name or id.")
@click.option("--tenant", metavar="NAME", help="Of this tenant, run by run.")
@click.option("--since", callback=timestamp, metavar="WHEN", help="Of runs begun since: 30d, 12h, 2026-11-24.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="ITEMS/S",
    help="Show how many devices this rate needs, as measured by --run, or by the newest bulk run (of --guard).",
)
@click.option("--guard", metavar="NAME", help="With --rate: measured by the newest bulk run of this guard.")
@click.option(
    "--busy",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="With --rate: keep devices busy for at most this share of the time.",
)
@price_option
@json_option
def cost(
    *,
    run: str | None,
    tenant: str | None,
    since: datetime | None,
    rate: float | None,
    guard: str | None,
    busy: float,
    price_per_device_hour: float | None,
    as_json: bool,
) -> None:
    """Show device time, tokens and money, or the devices that a rate needs.

    Costs are per 1,000 verdicts: by tenant and guard, or run by run. With --rate the answer is a number of devices,
    from what a run has measured on devices of that kind; nothing is estimated where nothing was measured.
    """
    if run and (tenant or since):
        raise click.UsageError("--run names one run: it goes with neither --tenant nor --since")
    with connected() as found:
        price = found.settings.price_per_device_hour if price_per_device_hour is None else price_per_device_hour
        if rate is not None:
            _show_devices(_measured(found, run, guard), rate, busy, price, as_json=as_json)
            return
        if run:
            status = run_status(found.engine, run)
            rows = [((status.name, status.spec.guard), run_cost(found.engine, status.id))]
        else:
            spent = run_costs(found.engine, tenant=tenant, since=since)
            sums: dict[tuple[str, str], Cost] = {}
            for one in spent:
                of = (one.name if tenant else one.tenant or "", one.guard)
                sums[of] = sums.get(of, Cost()) + one.cost
            rows = list(sums.items()) if tenant else sorted(sums.items(), key=lambda row: (-row[1].device_s, row[0]))
    if tenant and not rows:
        raise UsageError(f"no run of tenant {tenant!r} began then")
    key = "run" if run or tenant else "tenant"
    if as_json:
        print_json([{key: name or None, "guard": guard, **cost_facts(one, price)} for (name, guard), one in rows])
    elif rows:
        _show(key, rows, price)
    else:
        say("nothing has been judged yet")


def _show(first: str, rows: Iterable[tuple[tuple[str, str], Cost]], price: float | None) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold")
    table.add_column("guard", no_wrap=True)
    per_1000 = ["device s/1,000", "tokens/1,000", *(["money/1,000"] if price is not None else [])]
    for heading in ("verdicts", "device s", *per_1000):
        table.add_column(heading, justify="right", no_wrap=True)
    for (name, guard), cost in rows:
        tokens = cost.prompt_tokens + cost.new_tokens
        amounts = [cost.device_s, tokens, *([cost.money(price)] if price is not None else [])]
        measured = "" if cost.measured == cost.verdicts else f" ({cost.measured:,} measured)"
        table.add_row(
            Text(name or "–"),
            Text(guard),
            f"{cost.verdicts:,}{measured}",
            f"{cost.device_s:,.1f}",
            *("–" if (value := cost.per_1000(amount)) is None else amount_text(value) for amount in amounts),
        )
    out.print(table)
    say(_SHARED)


class _Measured(NamedTuple):
    """Items that one busy device judged in a second, by one run."""

    run: str
    guard: str
    device: str
    items_per_device_s: float
    tokens_per_item: float


def _measured(found: Services, run: str | None, guard: str | None) -> _Measured:
    """The rate of one device in a run: the one that is named, or the newest bulk run that measured enough."""
    if run:
        status = run_status(found.engine, run)
        return _rate_of(found.engine, status.id, status.name, status.spec.guard, run_cost(found.engine, status.id))
    for one in run_costs(found.engine):
        if one.lane == Lane.BULK and guard in (None, one.guard) and one.cost.measured >= _ENOUGH:
            try:
                return _rate_of(found.engine, one.run_id, one.name, one.guard, one.cost)
            except UsageError:
                continue
    raise UsageError(
        f"not measured: no bulk run{f' of {guard}' if guard else ''} here has {_ENOUGH} judgements of one kind of "
        "device. Measure some thousand items like yours on that device: libra run start FILE --guard NAME"
    )


def _rate_of(engine: sa.Engine, run_id: str, name: str, guard: str, cost: Cost) -> _Measured:
    judged = cost.measured - cached_count(engine, run_id)  # the cache's answers say nothing of a device
    if judged < _ENOUGH or cost.device_s <= 0:
        raise UsageError(
            f"not measured: run {name} has {max(0, judged):,} judgements by a device; at least {_ENOUGH} are needed"
        )
    if len(cost.devices) > 1:
        kinds = "; ".join(cost.devices)
        raise UsageError(f"not measured: run {name} ran on several kinds of device ({kinds}); measure one of them")
    device = cost.devices[0] if cost.devices else "unknown"
    tokens = (cost.prompt_tokens + cost.new_tokens) / judged
    return _Measured(name, guard, device, judged / cost.device_s, tokens)


def _show_devices(measured: _Measured, rate: float, busy: float, price: float | None, *, as_json: bool) -> None:
    devices = math.ceil(rate / (measured.items_per_device_s * busy))
    facts: dict[str, Any] = {
        "rate_per_s": rate,
        "measured": measured._asdict(),
        "devices": devices,
        "busy": rate / (measured.items_per_device_s * devices),
    }
    money = ""
    if price is not None:
        facts |= {"money_per_hour": devices * price, "money_per_1000": devices * price / (rate * 3.6)}
        per_hour, per_1000 = amount_text(facts["money_per_hour"]), amount_text(facts["money_per_1000"])
        money = f", {per_hour} an hour, {per_1000} per 1,000 items"
    if as_json:
        print_json(facts)
        return
    count = "1 device" if devices == 1 else f"{devices:,} devices"
    out.print(Text(f"{rate:,g} items/s need {count}, {facts['busy']:.0%} busy{money}", style="bold"))
    say(
        f"run {measured.run} of {measured.guard} measured {amount_text(measured.items_per_device_s)} items/s of one "
        f"busy {measured.device} device, {measured.tokens_per_item:,.0f} tokens an item; add one device for failures "
        "and upgrades (docs/operations.md)"
    )
