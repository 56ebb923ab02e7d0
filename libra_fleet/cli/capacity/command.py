"""`libra capacity`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from infra.errors import UsageError
from infra.settings import load_settings
from libra_fleet.cli.capacity import figures, measured
from libra_fleet.cli.capacity.figures import BULK, COLLECTOR_PER_S, LIVE, MACHINE, Path
from libra_fleet.cli.capacity.measured import Measured
from libra_fleet.cli.capacity.plan import LivePlan, bulk_devices, live_plan
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import GuardChoice, guard_option, json_option, price_option
from libra_fleet.cli.show import out, print_json
from producer.report.cost import amount_text

_ONE_CORE: Final = ("Redis", "collector", "gateway")
"""Parts of which one process uses one core: Redis runs commands on one thread, Python holds one lock."""


@click.command()
@guard_option
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), required=True, help="Items a second.")
@click.option("--p99", "p99_ms", type=click.FloatRange(min=0, min_open=True), help="Live latency in ms to stay below.")
@click.option("--run", metavar="RUN", help="Measured by this run. Default: the guard's newest bulk run.")
@click.option(
    "--measured",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=FilePath),
    help="Measured elsewhere: a run's report as JSON, or the file of make bench BENCH=engine.",
)
@price_option
@json_option
def capacity(
    *,
    guard: GuardChoice,
    rate: float,
    p99_ms: float | None,
    run: str | None,
    file: FilePath | None,
    price_per_device_hour: float | None,
    as_json: bool,
) -> None:
    """Say how many devices a rate needs, from measured figures alone, and what else it meets."""
    if run and file:
        raise click.UsageError("--run and --measured both say where the rate comes from: give one")
    found = _measured(guard.name, run, file)
    price = load_settings().price_per_device_hour if price_per_device_hour is None else price_per_device_hour
    live = live_plan(rate, found.items_per_device_s, p99_ms / 1000 if p99_ms else None)
    facts = _facts(guard.name, rate, found, live, price)
    if as_json:
        print_json(facts)
    else:
        for part in _shown(facts, found, live, p99_ms):
            out.print(part)


def _measured(guard: str, run: str | None, file: FilePath | None) -> Measured:
    if file:
        return measured.from_file(file, guard)
    with connected() as services:
        found = measured.from_run(services.engine, run, guard) if run else measured.newest(services.engine, guard)
    if found is None:
        raise UsageError(
            f"nothing was measured for {guard} here, and no figure is made up. On the machine with the device: "
            f"libra bench run FILE --guard {guard} --out measured.json (some thousand items like yours), then here: "
            f"libra capacity --guard {guard} --rate … --measured measured.json"
        )
    return found


def _facts(guard: str, rate: float, found: Measured, live: LivePlan | None, price: float | None) -> dict[str, Any]:
    bulk = bulk_devices(rate, found.items_per_device_s)
    facts: dict[str, Any] = {
        "guard": guard,
        "rate_per_s": rate,
        "measured": found._asdict(),
        "bulk": {"devices": bulk, "busy": rate / (found.items_per_device_s * bulk)},
        "live": live._asdict() if live else None,
        "around": {path.name: _around(path, rate) for path in (BULK, LIVE)},
        "measured_on": MACHINE,
    }
    for lane, devices in (("bulk", bulk), ("live", live.devices if live else None)):
        if price is not None and devices is not None:
            hourly = devices * price
            facts[lane] |= {"money_per_hour": hourly, "money_per_1000": hourly / (rate * 3.6)}
    return facts


def _around(path: Path, rate: float) -> dict[str, Any]:
    """Cores that each part takes at this rate, how many processes that makes, and how far it was really run."""
    cores = {cost.part: rate * cost.core_ms_per_item / 1000 for cost in path.parts}
    return {
        "cores": {part: round(value, 3) for part, value in cores.items()},
        "collectors": math.ceil(rate / COLLECTOR_PER_S) if path is BULK else math.ceil(cores["collector"]),
        "highest_measured_per_s": path.highest_per_s,
        "extrapolated": rate > path.highest_per_s,
    }


def _shown(
    facts: dict[str, Any], found: Measured, live: LivePlan | None, p99_ms: float | None
) -> Iterator[Text | Table]:
    yield Text(
        f"{facts['guard']}: one busy device judges {amount_text(found.items_per_device_s)} items/s", style="bold"
    )
    tokens = "" if found.tokens_per_item is None else f", {found.tokens_per_item:,.0f} tokens an item"
    yield Text(f"measured by {found.source} on {found.device}{tokens}; devices below are of that kind", style="dim")
    yield Text()
    bulk = facts["bulk"]
    yield Text(f"bulk: {_devices(bulk['devices'])}, {bulk['busy']:.0%} busy{_money(bulk)}")
    if live is None:
        yield Text(
            f"live: a p99 of {p99_ms:g} ms is below what the fleet around a device was measured at "
            f"({figures.LIVE_P99_S * 1000:g} ms): no number of devices brings it",
            style="yellow",
        )
    else:
        yield Text(
            f"live: {_devices(live.devices)}, {live.busy:.0%} busy, p99 about {live.p99_s * 1000:,.0f} ms"
            f"{_money(facts['live'])}"
        )
    yield Text("one device more than that stays when one fails or a machine is upgraded", style="dim")
    yield Text(
        "live batches are smaller than bulk ones and a device slower in them: measure a live run too", style="dim"
    )
    yield Text()
    yield _table(facts)
    yield Text(f"cores by the CPU an item took in docs/performance.md ({facts['measured_on']})", style="dim")
    for name, around in facts["around"].items():
        if around["extrapolated"]:
            yield Text(
                f"{name}: the highest rate that was really run is {around['highest_measured_per_s']:,.0f}/s; "
                "the rest is arithmetic",
                style="yellow",
            )


def _table(facts: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"at {facts['rate_per_s']:,g} items/s")
    for path in facts["around"]:
        table.add_column(path, justify="right")
    rows = dict.fromkeys(part for around in facts["around"].values() for part in around["cores"])
    for part in rows:
        cells = [around["cores"].get(part) for around in facts["around"].values()]
        table.add_row(part, *("–" if cores is None else _cores(part, cores) for cores in cells))
    return table


def _cores(part: str, cores: float) -> str:
    several = f": {math.ceil(cores)} of them" if part in _ONE_CORE and cores > 1 else ""
    return f"{amount_text(cores)} cores{several}"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"


def _money(lane: dict[str, Any]) -> str:
    if "money_per_hour" not in lane:
        return ""
    return f", {amount_text(lane['money_per_hour'])} an hour, {amount_text(lane['money_per_1000'])} per 1,000 items"
