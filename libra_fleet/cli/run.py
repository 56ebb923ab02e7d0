"""The producer's commands: `libra bench …`, `libra judge`.

Results go to standard output, everything else to standard error, so that `--json` can be piped.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from pydantic import ValidationError

from infra.errors import DataError, RunError, UsageError
from infra.ledger import cascades, intake, reading, settlement
from infra.ledger.reading import RunStatus
from infra.servers.services import Services
from libra_fleet.cli.compare import compare
from libra_fleet.cli.context import (
    begin,
    carry_out,
    checked,
    connected,
    detaching,
    fleet_for,
    go_on,
    known_run,
    prepare,
    report_of,
    write_page,
)
from libra_fleet.cli.options import (
    GuardChoice,
    LocalFleetOptions,
    ReportOptions,
    RunRequest,
    analysis_option,
    cache_option,
    guard_option,
    html_option,
    json_option,
    mode_for,
    mode_option,
    price_option,
    takes_fleet,
    takes_outlet,
)
from libra_fleet.cli.orders import takes_order
from libra_fleet.cli.parity import parity
from libra_fleet.cli.show import print_json, print_report, print_runs, print_verdict, run_facts, say
from libra_fleet.cli.watch import wait_for_end
from libra_fleet.machine.local_fleet import local_fleet
from producer.intake.live import LiveClient
from schemas.messages import Lane
from schemas.runs import RunSpec, RunState
from schemas.verdicts import Outcome


@click.group()
def bench() -> None:
    """Bulk runs over a data set: submit, watch, report.

    SOURCE is a JSON, JSONL or Parquet file, a folder of these, - for standard input, a hub id such as
    caskcsg/Libra-Test, or `demo`. RUN is a run's name or id.

    \b
    Exit codes: 0 done, 1 unforeseen, 2 usage, 3 data, 4 servers, 5 guard,
    6 device, 7 a run that ended other than asked, 130 interrupted.
    """  # noqa: D301 - click wants the character itself


@bench.command()
@takes_order
@takes_fleet
@takes_outlet
def run(*, order: RunRequest, fleet: LocalFleetOptions, outlet: ReportOptions) -> None:
    """Submit a data set, wait for the run to complete and print its table."""
    prepare(outlet)
    with connected() as found:
        known_run(found, order)  # a name that is taken is said before a long data set is read
        with checked(order.source, order.spec) as data:
            carry_out(found, order, data, fleet, outlet)


@bench.command()
@takes_order
@json_option
def submit(*, order: RunRequest, as_json: bool) -> None:
    """Submit a data set and return; a fleet elsewhere judges it."""
    with connected() as found:
        known = known_run(found, order)
        run_id = known.id if known else intake.new_run_id()
        with checked(order.source, order.spec) as data, detaching(found, run_id) as check:
            begin(found, order, known, run_id)
            data.feed(found, run_id, order.spec, check)
        status = reading.run_status(found.engine, run_id)
        if as_json:
            print_json(run_facts(status))
            return
        say(f"submitted; {status.counts.accepted:,} items. Follow them with: libra bench watch {status.name}")
        click.echo(run_id)


@bench.command()
@click.argument("run")
@click.argument("source", required=False)
@takes_fleet
@takes_outlet
def resume(*, run: str, source: str | None, fleet: LocalFleetOptions, outlet: ReportOptions) -> None:
    """Go on with a run whose submission was interrupted: only what is missing is submitted.

    SOURCE says where the data set is now, if not where it was.
    """
    prepare(outlet)
    with connected() as found:
        status = _whole(found, run)
        if status.spec.parent and status.state is RunState.OPEN:
            raise UsageError(
                f"run {status.name} is a child: go on with libra remoderate --guard {status.spec.guard} "
                f"--run {status.spec.parent} (or the --since it was given)"
            )
        if status.state is not RunState.OPEN or status.spec.lane is Lane.LIVE:
            go_on(found, status, fleet, outlet)
            return
        if status.spec.source == "-" and source is None:
            raise UsageError(f"run {status.name} was read from standard input: name the data again, as second argument")
        with checked(source or status.spec.source, status.spec) as data:
            go_on(found, status, fleet, outlet, data)


@bench.command()
@click.argument("run")
@takes_fleet
@takes_outlet
def watch(*, run: str, fleet: LocalFleetOptions, outlet: ReportOptions) -> None:
    """Follow a run until it has ended, then print its table."""
    prepare(outlet)
    with connected() as found:
        status = _whole(found, run)
        if status.state is RunState.OPEN:
            say(f"run {status.name} takes items still; if nobody submits any more: libra bench resume {status.name}")
        go_on(found, status, fleet, outlet)


@bench.command()
@click.argument("run")
@json_option
def status(*, run: str, as_json: bool) -> None:
    """Show where a run stands."""
    with connected() as found:
        status = reading.run_status(found.engine, run)
        if as_json:
            print_json(run_facts(status))
        else:
            print_runs(cascades.stages_of(found.engine, status.id))


@bench.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@json_option
def list_(*, limit: int, as_json: bool) -> None:
    """List the newest runs."""
    with connected() as found:
        runs = reading.list_runs(found.engine, limit=limit)
        if as_json:
            print_json([run_facts(status) for status in runs])
        elif runs:
            print_runs(runs)
        else:
            say("no runs yet: `libra bench run demo` makes one")


@bench.command()
@click.argument("run")
def cancel(*, run: str) -> None:
    """End a run now: what is pending settles as dead with the reason "cancelled"."""
    with connected() as found:
        stages = cascades.stages_of(found.engine, reading.run_status(found.engine, run).id)
        status = next((stage for stage in stages if not stage.state.ended), stages[-1])
        if status.state.ended:
            raise UsageError(f"run {status.name} has ended already: it is {status.state}")
        settled = settlement.cancel(found.engine, status.id)
        found.coordination.notices.cancelled(status.id)
        if settled.finished:
            found.publisher.finalize(status.id)
        if found.embedded:  # nobody else may be there to write the report
            with local_fleet(found, None) as fleet:
                wait_for_end(found.engine, status.id, check=fleet.check)
        say(f"run {status.name} is cancelled; {settled.inserted:,} pending items settled as dead")


@bench.command()
@click.argument("run")
@price_option
@html_option
@click.option("--no-text", is_flag=True, help="Leave the items' texts out of the page.")
@json_option
def report(*, run: str, price_per_device_hour: float | None, html: Path | None, no_text: bool, as_json: bool) -> None:
    """Print the report of a run that has ended, and write it as a page."""
    with connected() as found:
        status = reading.run_status(found.engine, run)
        stored = report_of(found, status.id)
        if stored is None:
            raise UsageError(f"run {status.name} is {status.state}: its report comes when it has ended")
        price = found.settings.price_per_device_hour if price_per_device_hour is None else price_per_device_hour
        print_report(stored, as_json=as_json, price_per_device_hour=price)
        if html:
            write_page(found, stored, html, with_text=not no_text)


bench.add_command(parity)
bench.add_command(compare)


@click.command()
@click.argument("text")
@click.option("--question", default="", help="The question that TEXT answers, if it is a model's response.")
@guard_option
@mode_option
@cache_option(default=True)
@analysis_option
@click.option("--timeout", "timeout_s", type=float, default=30, show_default=True, help="Seconds to wait.")
@takes_fleet
@json_option
def judge(
    *,
    text: str,
    question: str,
    guard: GuardChoice,
    mode: str | None,
    cache: bool,
    analysis: bool,
    timeout_s: float,
    fleet: LocalFleetOptions,
    as_json: bool,
) -> None:
    """Judge one TEXT (- for standard input) over the live lane. Exit 7 if it could not be judged."""
    text = _standard_input() if text == "-" else text
    spec = RunSpec(
        guard=guard.name,
        checkpoint=guard.checkpoint,
        mode=mode_for(guard, mode),
        lane=Lane.LIVE,
        source="live:cli",
    )
    with connected() as found, fleet_for(found, spec, fleet):
        client = LiveClient(found, guard=guard.name, mode=spec.mode, tenant="cli", cache=cache, analysis=analysis)
        try:
            verdict = client.judge(text, question=question, timeout_s=timeout_s)
        except ValidationError as error:
            raise DataError(_why_no_item(error)) from error
        finally:
            client.close()
        print_verdict(verdict, as_json=as_json)
    if verdict.outcome is Outcome.DEAD:
        raise RunError("the text could not be judged")


def _whole(found: Services, run: str) -> RunStatus:
    """A run by id or name; of a cascade's stage, the cascade's first run."""
    status = reading.run_status(found.engine, run)
    if cascades.is_later_stage(status.id, status.spec):
        return reading.run_status(found.engine, cascades.first_id(status.id))
    return status


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"-: not UTF-8 (byte {error.start + 1})") from error


def _why_no_item(error: ValidationError) -> str:
    details = error.errors(include_input=False, include_url=False)
    said = [(".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")) for detail in details]
    return "; ".join(f"{field}: {message}" if field else message for field, message in said)
