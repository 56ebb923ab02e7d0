"""`libra cascade`: choose a stage's thresholds on labelled items, and see what a cascade saved and cost."""

from __future__ import annotations

from collections.abc import Iterator

import click

from infra.errors import UsageError
from infra.ledger import cascades, reading, settlement
from infra.metrics.thresholds import Scored, Side, Thresholds, fit_thresholds
from infra.servers.services import Services
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import json_option
from libra_fleet.cli.show import out, print_json, print_report
from producer.report.cascade import cascade_report


@click.group()
def cascade() -> None:
    """Cascades: a small guard settles what it is sure of, the rest goes on to a larger one.

    `libra bench run DATA --guard 'cascade:small@0.02:0.98>large'` runs one.
    """


@cascade.command()
@click.option("--run", required=True, metavar="RUN", help="A run of the small guard over labelled items.")
@click.option(
    "--target-error",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.02,
    show_default=True,
    help="Of what the stage settles, at most this share may be wrong, on each side.",
)
@json_option
def fit(*, run: str, target_error: float, as_json: bool) -> None:
    """Choose thresholds for a guard from a run of it over labelled items, and print how to write them.

    Fit on one data set and measure on another: on the items they are chosen on, thresholds look better than they are.
    """
    with connected() as found:
        status = reading.run_status(found.engine, run)
        fitted = fit_thresholds(_scored(found, status.id), target_error)
    if not fitted.items:
        raise UsageError(f"run {status.name} holds no item with both a truth and a score")
    written = f"{status.spec.guard}@{fitted.sure_below!r}:{fitted.sure_above!r}"
    if as_json:
        print_json(_facts(fitted, target_error, written))
        return
    for side, name in ((fitted.below, "safe"), (fitted.above, "unsafe")):
        out.print(_line(side, name, fitted.items), highlight=False)
    out.print(f"{fitted.settled_share:.1%} settled; the rest, and what has no score, goes on")
    click.echo(written)


@cascade.command()
@click.argument("run")
@click.option(
    "--against", metavar="RUN", help="A run of one guard over the same items: what the cascade cost, exactly."
)
@json_option
def report(*, run: str, against: str | None, as_json: bool) -> None:
    """Print the report of a cascade that has ended; with --against, beside a run of its last guard alone."""
    with connected() as found:
        first = reading.run_status(found.engine, cascades.first_id(reading.run_status(found.engine, run).id))
        if not first.spec.stages:
            raise UsageError(f"run {first.name} is no cascade")
        other = reading.run_status(found.engine, against) if against else None
        print_report(
            cascade_report(found.engine, cascades.stages_of(found.engine, first.id), against=other), as_json=as_json
        )


def _scored(found: Services, run_id: str) -> Iterator[Scored]:
    for row in settlement.judged_rows(found.engine, run_id):
        if row.truth is not None and row.label is not None and row.p_unsafe is not None:
            yield Scored(row.p_unsafe, row.label == row.truth)


def _line(side: Side, name: str, items: int) -> str:
    if side.error is None or side.error_interval is None:
        return f"sure of {name}: never"
    low, high = side.error_interval
    share = f"{side.items:,} of {items:,} items ({side.items / items:.1%})"
    return f"sure of {name}: {share}, {side.wrong:,} of them wrong: {side.error:.2%} ({low:.2%} to {high:.2%})"


def _facts(fitted: Thresholds, target_error: float, written: str) -> dict[str, object]:
    def facts(side: Side) -> dict[str, object]:
        return {**side._asdict(), "error": side.error, "error_interval": side.error_interval}

    return {
        "stage": written,
        "target_error": target_error,
        "items": fitted.items,
        "settled_share": fitted.settled_share,
        "safe": {"sure_below": fitted.sure_below, **facts(fitted.below)},
        "unsafe": {"sure_above": fitted.sure_above, **facts(fitted.above)},
    }
