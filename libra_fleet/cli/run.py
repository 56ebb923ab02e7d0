"""`libra run`: submit a data set, follow the run to its report, and look at runs.

Results go to standard output, everything else to standard error, so that `--json` can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich.table import Table

from infra.errors import DataError, RunEndedError, RunError, UsageError
from infra.ledger import intake, settlement
from infra.ledger.audit import audit
from infra.ledger.items import judged_rows
from infra.ledger.runs import RunStatus, find_run, first_id, is_later_stage, list_runs, run_status, stages_of
from infra.ledger.stats import dead_reasons, unparseable_reasons
from infra.metrics.thresholds import Scored, fit_thresholds
from infra.servers.services import Services
from libra_fleet.cli.context import (
    connected,
    detaching,
    fleet_for,
    follow_stages,
    progress_line,
    wait_for_end,
    wait_for_report,
)
from libra_fleet.cli.options import (
    LocalFleetOptions,
    ReportOptions,
    RunRequest,
    dry_run_option,
    html_option,
    json_option,
    no_text_option,
    price_option,
    takes_fleet,
    takes_report_options,
    takes_request,
)
from libra_fleet.cli.show import (
    bad_rows,
    err,
    finish,
    out,
    prepare,
    print_item,
    print_json,
    print_report,
    print_runs,
    report_of,
    require_readable,
    run_facts,
    say,
    write_page,
)
from libra_fleet.machine.fleet import worker_is_up
from producer.datasets import DataSet, Validation, open_dataset, valid_items, validate
from producer.intake.submit import seal
from producer.intake.submit import submit as submit_items
from producer.report.cascade import cascade_report as report_of_stages
from schemas.messages import Lane
from schemas.reading import AS_IT_IS
from schemas.runs import RunReport, RunSpec, RunState


@click.command()
@takes_request
@dry_run_option
@takes_fleet
@takes_report_options
def start(*, request: RunRequest, dry_run: bool, fleet: LocalFleetOptions, report_options: ReportOptions) -> None:
    """Submit a data set, wait for the run to complete and print its table."""
    if dry_run:
        show_items(request.source, request.spec, as_json=report_options.as_json)
        return
    prepare(report_options)
    with connected() as found:
        known = known_run(found, request)  # a name that is taken is said before a long data set is read
        run_id = known.id if known else intake.new_run_id()
        with checked(request.source, request.spec) as data:
            ended = known is not None and stages_of(found.engine, run_id)[-1].state.ended
            with fleet_for(found, request.spec, fleet, needed=not ended) as fleet_lives:
                with detaching(found, run_id, fleet_lives) as check:
                    begin(found, request, known, run_id)
                    total = data.validation.valid * request.spec.repeat
                    follow(found, run_id, request.spec, check, data=data, total_items=total)
                finish(found, run_id, report_options)


@click.command()
@takes_request
@dry_run_option
@json_option
def submit(*, request: RunRequest, dry_run: bool, as_json: bool) -> None:
    """Submit a data set and return; a fleet elsewhere judges it."""
    if dry_run:
        show_items(request.source, request.spec, as_json=as_json)
        return
    with connected() as found:
        known = known_run(found, request)
        run_id = known.id if known else intake.new_run_id()
        with checked(request.source, request.spec) as data, detaching(found, run_id) as check:
            begin(found, request, known, run_id)
            data.feed(found, run_id, request.spec, check)
        status = run_status(found.engine, run_id)
        if as_json:
            print_json(run_facts(status))
            return
        say(f"submitted; {status.counts.accepted:,} items. Follow them with: libra run watch {status.name}")
        click.echo(run_id)


@click.command()
@click.argument("run")
@click.argument("source", required=False)
@takes_fleet
@takes_report_options
def resume(*, run: str, source: str | None, fleet: LocalFleetOptions, report_options: ReportOptions) -> None:
    """Go on with a run whose submission was interrupted.

    Only what is missing is submitted. SOURCE says where the data set is now, if not where it was.
    """
    prepare(report_options)
    with connected() as found:
        status = _whole(found, run)
        if status.spec.parent and status.state is RunState.OPEN:
            raise UsageError(
                f"run {status.name} is a child: go on with libra run rejudge --guard {status.spec.guard} "
                f"--run {status.spec.parent} (or the --since it was given)"
            )
        if status.state is not RunState.OPEN or status.spec.lane is Lane.LIVE:
            _go_on(found, status, fleet, report_options)
            return
        if status.spec.source == "-" and source is None:
            raise UsageError(f"run {status.name} was read from standard input: name the data again, as second argument")
        with checked(source or status.spec.source, status.spec) as data:
            _go_on(found, status, fleet, report_options, data)


@click.command()
@click.argument("run")
@takes_fleet
@takes_report_options
def watch(*, run: str, fleet: LocalFleetOptions, report_options: ReportOptions) -> None:
    """Follow a run until it has ended, then print its table."""
    prepare(report_options)
    with connected() as found:
        status = _whole(found, run)
        if status.state is RunState.OPEN:
            say(f"run {status.name} still accepts items; if nothing submits any more: libra run resume {status.name}")
        _go_on(found, status, fleet, report_options)


@click.command()
@click.argument("run")
@json_option
def show(*, run: str, as_json: bool) -> None:
    """Show the state of a run."""
    with connected() as found:
        status = run_status(found.engine, run)
        if as_json:
            print_json(run_facts(status))
        else:
            print_runs(stages_of(found.engine, status.id))


@click.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="List at most this many.")
@json_option
def list_(*, limit: int, as_json: bool) -> None:
    """List the newest runs."""
    with connected() as found:
        runs = list_runs(found.engine, limit=limit)
        if as_json:
            print_json([run_facts(status) for status in runs])
        elif runs:
            print_runs(runs)
        else:
            say("no runs yet: `libra run start demo` makes one")


@click.command()
@click.argument("run")
@json_option
def cancel(*, run: str, as_json: bool) -> None:
    """End a run now; its pending items settle as dead.

    Their reason is "cancelled".
    """
    with connected() as found:
        stages = stages_of(found.engine, run_status(found.engine, run).id)
        status = next((stage for stage in stages if not stage.state.ended), stages[-1])
        if status.state.ended:
            raise UsageError(f"run {status.name} has ended already: it is {status.state}")
        settled = _cancel(found, status.id)
        if found.embedded:
            wait_for_report(found, status.id)
        say(f"run {status.name} is cancelled; {settled.inserted:,} pending items settled as dead")
        if as_json:
            print_json(run_facts(run_status(found.engine, status.id)))


def _cancel(found: Services, run_id: str) -> settlement.Settled:
    """End a run now; what is pending settles as dead."""
    settled = settlement.cancel(found.engine, run_id)
    found.coordination.notices.cancelled(run_id)
    if settled.finished:
        found.publisher.finalize(run_id)
    return settled


@click.command()
@click.argument("run")
@click.option(
    "--against", metavar="RUN", help="Cascade: compare with a run of one guard over the same items, such as its last."
)
@price_option
@html_option
@no_text_option
@json_option
def report(
    *,
    run: str,
    against: str | None,
    price_per_device_hour: float | None,
    html: Path | None,
    no_text: bool,
    as_json: bool,
) -> None:
    """Print the report of a run that has ended, and write it as a page."""
    with connected() as found:
        status = run_status(found.engine, run)
        stored = _against(found, run, against) if against else report_of(found, status.id)
        if stored is None:
            raise UsageError(f"run {status.name} is {status.state}: its report comes when it has ended")
        price = found.settings.price_per_device_hour if price_per_device_hour is None else price_per_device_hour
        print_report(stored, as_json=as_json, price_per_device_hour=price)
        if html:
            write_page(found, stored, html, with_text=not no_text)


@click.command()
@click.argument("run")
@click.option("--against", metavar="RUN", help="Compare with a run of one guard over the same items.")
@json_option
def cascade_report(*, run: str, against: str | None, as_json: bool) -> None:
    """Print the report of a cascade.

    The new name is `libra run report`.
    """
    with connected() as found:
        print_report(_against(found, run, against), as_json=as_json)


def _against(found: Services, run: str, against: str | None) -> RunReport:
    """The report of a cascade, of which RUN may be any stage."""
    first = run_status(found.engine, first_id(run_status(found.engine, run).id))
    if not first.spec.stages:
        raise UsageError(f"run {first.name} is no cascade")
    other = run_status(found.engine, against) if against else None
    return report_of_stages(found.engine, stages_of(found.engine, first.id), against=other)


@click.command()
@click.argument("run", required=False)
@click.option("--run", "named", metavar="RUN", hidden=True)  # its place in earlier versions
@click.option(
    "--target-error",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.02,
    show_default=True,
    help="Of what the stage settles, at most this share may be wrong, on each side.",
)
@json_option
def choose_thresholds(*, run: str | None, named: str | None, target_error: float, as_json: bool) -> None:
    """Choose a cascade stage's thresholds from a labelled run.

    RUN is a run of the small guard over labelled items; what is printed goes into --guard 'cascade:…'. Choose on one
    data set and measure on another: on the items they are chosen on, thresholds look better than they are.
    """
    run = run or named
    if run is None:
        raise click.UsageError("name a run of the small guard over labelled items")
    with connected() as found:
        status = run_status(found.engine, run)
        scored = (
            Scored(row.p_unsafe, row.label == row.truth)
            for row in judged_rows(found.engine, status.id)
            if row.truth is not None and row.label is not None and row.p_unsafe is not None
        )
        fitted = fit_thresholds(scored, target_error)
    if not fitted.items:
        raise UsageError(f"run {status.name} holds no item with both a truth and a score")
    written = f"{status.spec.guard}@{fitted.sure_below!r}:{fitted.sure_above!r}"
    if as_json:
        sides = [
            {**s._asdict(), "error": s.error, "error_interval": s.error_interval} for s in (fitted.below, fitted.above)
        ]
        facts: dict[str, object] = {"stage": written, "target_error": target_error, "items": fitted.items}
        facts |= {"settled_share": fitted.settled_share, "safe": {"sure_below": fitted.sure_below, **sides[0]}}
        print_json({**facts, "unsafe": {"sure_above": fitted.sure_above, **sides[1]}})
        return
    for side, name in ((fitted.below, "safe"), (fitted.above, "unsafe")):
        if side.error is None or side.error_interval is None:
            out.print(f"{name} is never settled")
            continue
        low, high = side.error_interval
        share = f"{side.items:,} of {fitted.items:,} items ({side.items / fitted.items:.1%})"
        out.print(
            f"settled as {name}: {share}, {side.wrong:,} of them wrong: {side.error:.2%} ({low:.2%} to {high:.2%})"
        )
    out.print(f"{fitted.settled_share:.1%} settled; the rest, and items without a score, escalate")
    click.echo(written)


@click.command()
@click.argument("run")
@click.option("--receipt", help="The receipt you kept: it must be the one found now.")
@json_option
def verify(*, run: str, receipt: str | None, as_json: bool) -> None:
    """Prove that nothing in a run was lost, doubled or altered.

    Exit 7 on any breach.
    """
    with connected() as found:
        status = run_status(found.engine, run)
        result = audit(found.engine, status.id)
    if as_json:
        print_json(
            {
                "run": result.run_id,
                "sound": result.sound,
                "receipt": result.receipt,
                "wasted_items": result.wasted_items,
                "reattempted_chunks": result.reattempted_chunks,
                **({"cached_items": result.cached_items} if result.cached_items else {}),
                "checks": [check._asdict() for check in result.checks],
            }
        )
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for check in result.checks:
            mark = "[green]✓[/]" if not check.breaches else f"[red]✗ {check.breaches:,}[/]"
            table.add_row(mark, check.name, f"[dim]{check.found}[/]")
        counts = status.counts
        out.print(f"run {status.name} · {status.state.value}")
        out.print(table)
        out.print(f"{counts.accepted:,} accepted · {counts.settled:,} settled · {counts.pending:,} pending")
        out.print(f"{result.wasted_items:,} items judged more than once · {result.reattempted_chunks:,} chunks retried")
        if result.cached_items:
            out.print(f"{result.cached_items:,} items answered from the cache")
        out.print(f"receipt {result.receipt}")
    breaches = [check.name for check in result.checks if check.breaches]
    if breaches:
        raise RunError(f"run {status.name} breaks {len(breaches)} of {len(result.checks)}: {'; '.join(breaches)}")
    if receipt and receipt != result.receipt:
        raise RunError(f"the receipt of run {status.name} is {result.receipt}, not the one you kept")


_SHOWN_ITEMS: Final = 3
_HELD_S: Final = 5.0
"""So long a producer waits for room before a person is told; shorter waits are usual."""


def _says_held(found: Services, spec: RunSpec) -> Callable[[str], None]:
    """Says once why the submission is held back, and whether any worker is there."""
    since: float | None = None
    said = False

    def held(why: str) -> None:
        nonlocal since, said
        now = time.monotonic()
        since = since or now
        if not said and now - since >= _HELD_S:
            said = True
            nobody = "" if worker_is_up(found, spec.guard) else f"; no worker serves {spec.guard}"
            say(f"held back: {why}{nobody} (`libra fleet status` shows more)")

    return held


class Checked(NamedTuple):
    """A data set that has passed its validation."""

    dataset: DataSet
    validation: Validation

    def feed(self, found: Services, run_id: str, spec: RunSpec, check: Callable[[], None]) -> None:
        """Submit what the run does not hold yet, then seal it; `check` may raise to stop in between."""
        items = (row.item for row in valid_items(self.dataset, self.validation))
        submit_items(found, run_id, spec, items, check=check, on_held=_says_held(found, spec))
        held = run_status(found.engine, run_id).counts.accepted
        if held != self.validation.valid:
            raise DataError(f"run {run_id} holds {held:,} items, {self.dataset.name} {self.validation.valid:,}")
        seal(found, run_id, invalid_count=self.validation.invalid_count, invalid_rows=self.validation.invalid)


def show_items(source: str, spec: RunSpec, *, as_json: bool) -> None:
    """Show how a data set would be read: its counts, its first items as they would be judged, what is wrong with it."""
    with opened(source, spec) as (dataset, validation):
        rows = list(islice(valid_items(dataset, validation), _SHOWN_ITEMS))
    facts = {"valid": validation.valid, "labelled": validation.labelled, "bad": validation.invalid_count}
    if as_json:
        items = [{"where": row.where, **row.item.model_dump(mode="json", exclude_defaults=True)} for row in rows]
        bad = [{**fault.first.model_dump(), "rows": fault.rows, "try": fault.switch} for fault in validation.faults]
        print_json({**facts, "first": items, "problems": bad})
    else:
        for row in rows:
            print_item(row.where, row.item)
        out.print(
            f"{validation.valid:,} items, {validation.labelled:,} of them labelled; "
            f"{spec.guard} would judge them in mode {spec.mode}; nothing was submitted"
        )
    if validation.invalid_count and not spec.skip_invalid:
        raise DataError(bad_rows(validation))


@contextmanager
def opened(source: str, spec: RunSpec) -> Iterator[tuple[DataSet, Validation]]:
    """Open a data set, read it once, and say how it was understood."""
    with open_dataset(
        source,
        reading=spec.reading or AS_IT_IS,
        stdin=sys.stdin.buffer if source == "-" else None,
        shard=(spec.shard_index, spec.shard_count),
        limit=spec.limit,
        shuffle_seed=spec.seed,
    ) as dataset:
        with err.status(f"checking {dataset.name}") if err.is_terminal else nullcontext():
            validation = validate(dataset)
        for note in dataset.notes():
            say(note)
        if validation.repeated:
            say(f"{validation.repeated:,} rows repeat a text; each text is judged once")
        yield dataset, validation


@contextmanager
def checked(source: str, spec: RunSpec) -> Iterator[Checked]:
    """Open a data set and read it once."""
    with opened(source, spec) as (dataset, validation):
        if validation.invalid_count and not spec.skip_invalid:
            raise DataError(
                f"{bad_rows(validation)}\n  nothing was submitted; --skip-invalid submits the rest and lists these"
            )
        if not validation.valid:
            raise DataError(f"{dataset.name} holds no item to judge; {bad_rows(validation)}")
        yield Checked(dataset, validation)


def known_run(found: Services, request: RunRequest) -> RunStatus | None:
    """The run that this very request was given for before, by its name."""
    known = find_run(found.engine, request.name) if request.name else None
    if known is None:
        return None
    pairs = {field: (getattr(known.spec, field), getattr(request.spec, field)) for field in RunSpec.model_fields}
    differing = [f"{field} {theirs}, not {ours}" for field, (theirs, ours) in pairs.items() if theirs != ours]
    if differing:
        raise UsageError(f"there is a run named {request.name} already, with {'; '.join(differing)}")
    return known


def begin(found: Services, request: RunRequest, known: RunStatus | None, run_id: str) -> None:
    """Open the run of a request, unless it is known already, and say what happens."""
    if known is None:
        found.coordination  # noqa: B018 - a broker that cannot be reached is said before a run is opened
        intake.create_run(found.engine, request.spec, run_id=run_id, name=request.name)
        say(f"run {request.name or run_id} of {request.source}")
    elif known.state.ended:
        say(f"run {known.name} has ended already; this is its report")
    else:
        say(f"going on with run {known.name}; {known.counts.accepted:,} items were submitted before")


def follow(
    found: Services,
    run_id: str,
    spec: RunSpec,
    check: Callable[[], None],
    *,
    data: Checked | None,
    total_items: int | None,
) -> None:
    """Feed a run what it lacks, then follow it and a cascade's later stages to their end.

    Raises:
        RunError: of the first answers none could be read, and the run that is fed here is cancelled.
    """
    if data is not None and not spec.stages:  # who only watches a run does not end it
        check = _stops_unreadable(found, run_id, spec, check)
    with progress_line(found.engine, run_id, total_items=total_items):
        if data is not None:
            data.feed(found, run_id, spec, check)
        wait_for_end(found.engine, run_id, check=check)
    follow_stages(found, run_id, check)


_FIRST_ANSWERS: Final = 64
_LOOK_EVERY_S: Final = 1.0


def _stops_unreadable(found: Services, run_id: str, spec: RunSpec, check: Callable[[], None]) -> Callable[[], None]:
    """A check that also cancels the run where none of its first answers can be read: the rest would be for nothing."""
    looks_at = time.monotonic()
    readable = False

    def watching() -> None:
        nonlocal looks_at, readable
        check()
        if readable or time.monotonic() < looks_at:
            return
        looks_at = time.monotonic() + _LOOK_EVERY_S
        status = run_status(found.engine, run_id)
        readable = status.counts.scored > 0 or status.state.ended
        if not readable and status.counts.settled >= _FIRST_ANSWERS:
            reasons = unparseable_reasons(found.engine, run_id) or dead_reasons(found.engine, run_id)
            with suppress(RunEndedError):
                _cancel(found, run_id)
            require_readable(status.counts, reasons, spec)

    return watching


def _go_on(
    found: Services,
    run: RunStatus,
    choice: LocalFleetOptions,
    report_options: ReportOptions,
    data: Checked | None = None,
) -> None:
    """Follow a run to its end, after feeding it what it lacks, and show the report."""
    if run.spec.lane is Lane.LIVE:
        raise UsageError(f"{run.name} is live traffic, which has no end: `libra run show` shows its state")
    ended = stages_of(found.engine, run.id)[-1].state.ended
    with fleet_for(found, run.spec, choice, needed=not ended) as fleet_lives:
        with detaching(found, run.id, fleet_lives) as check:
            follow(found, run.id, run.spec, check, data=data, total_items=run.expected)
        finish(found, run.id, report_options)


def _whole(found: Services, run: str) -> RunStatus:
    """A run by id or name; of a cascade's stage, the cascade's first run."""
    status = run_status(found.engine, run)
    if is_later_stage(status.id, status.spec):
        return run_status(found.engine, first_id(status.id))
    return status
