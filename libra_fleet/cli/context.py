"""What the bench commands have in common: check a data set, feed it to a run, follow the run to its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final, NamedTuple

import redis
from sqlalchemy.exc import InterfaceError, OperationalError

from infra.errors import DataError, RunError, ServerError, UsageError
from infra.ledger import cascades, intake, reading
from infra.ledger.reading import RunStatus
from infra.process import deferred_interrupt
from infra.servers.services import Services, services
from infra.settings import load_settings
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, QualityGate, ReportOptions, RunRequest
from libra_fleet.cli.show import bad_rows, err, print_report, say
from libra_fleet.cli.watch import progress_line, wait_for_end
from libra_fleet.machine.local_fleet import local_fleet, worker_is_up
from producer.datasets import DataSet, Validation, open_dataset, valid_items, validate
from producer.intake.submit import seal, submit
from producer.report.cascade import cascade_report
from producer.report.evidence import gather
from producer.report.json import to_json
from schemas.messages import Lane
from schemas.runs import RunReport, RunSpec, RunState

SERVERS_WAIT_S: Final = 3.0
"""How long a person waits to hear that a server is not there; LIBRA_WAIT_FOR_SERVERS_S overrules it."""


@contextmanager
def connected() -> Iterator[Services]:
    """The servers, for a command that somebody waits for.

    Raises:
        ServerError: one of them cannot be reached, or went away meanwhile.
    """
    settings = load_settings()
    if "wait_for_servers_s" not in settings.model_fields_set:
        settings = settings.model_copy(update={"wait_for_servers_s": SERVERS_WAIT_S})
    with services(settings) as found:
        try:
            yield found
        except (OperationalError, InterfaceError) as error:
            raise ServerError(f"lost Postgres: {str(error.orig).strip()}") from error
        except redis.RedisError as error:
            raise ServerError(f"lost Redis: {error}") from error


class Checked(NamedTuple):
    """A data set that has passed its validation."""

    dataset: DataSet
    validation: Validation

    def feed(self, found: Services, run_id: str, spec: RunSpec, check: Callable[[], None]) -> None:
        """Submit what the run does not hold yet, then seal it; `check` may raise to stop in between.

        Raises:
            RunError: the run was cancelled meanwhile, or is sealed and lacks items.
            DataError: the run holds an item with another content, or items that are not in the data set.
        """
        submit(found, run_id, spec, (row.item for row in valid_items(self.dataset, self.validation)), check=check)
        held = reading.run_status(found.engine, run_id).counts.accepted
        if held != self.validation.valid:
            raise DataError(f"run {run_id} holds {held:,} items, {self.dataset.name} {self.validation.valid:,}")
        seal(found, run_id, invalid_count=self.validation.invalid_count, invalid_rows=self.validation.invalid)


@contextmanager
def checked(source: str, spec: RunSpec) -> Iterator[Checked]:
    """Open a data set and read it once.

    Raises:
        DataError: it cannot be read, has bad rows that nobody asked to skip, or holds nothing to judge.
    """
    opened = open_dataset(
        source,
        stdin=sys.stdin.buffer if source == "-" else None,
        shard=(spec.shard_index, spec.shard_count),
        limit=spec.limit,
        shuffle_seed=spec.seed,
    )
    with opened as dataset:
        with err.status(f"checking {dataset.name}") if err.is_terminal else nullcontext():
            validation = validate(dataset)
        if validation.invalid_count and not spec.skip_invalid:
            raise DataError(
                f"{bad_rows(validation)}\n  nothing was submitted; --skip-invalid submits the rest and lists these"
            )
        if not validation.valid:
            raise DataError(f"{dataset.name} holds no item to judge; {bad_rows(validation)}")
        yield Checked(dataset, validation)


def known_run(found: Services, order: RunRequest) -> RunStatus | None:
    """The run that this very order was given for before, by its name.

    Raises:
        UsageError: the name belongs to a run with other options.
    """
    known = reading.find_run(found.engine, order.name) if order.name else None
    if known is None:
        return None
    pairs = {field: (getattr(known.spec, field), getattr(order.spec, field)) for field in RunSpec.model_fields}
    differing = [f"{field} {theirs}, not {ours}" for field, (theirs, ours) in pairs.items() if theirs != ours]
    if differing:
        raise UsageError(f"there is a run named {order.name} already, with {'; '.join(differing)}")
    return known


def carry_out(
    found: Services, order: RunRequest, data: Checked, choice: LocalFleetOptions, outlet: ReportOptions
) -> None:
    """Submit an order, wait for its run to end, and show the report.

    Raises:
        RunError: the run ended other than asked.
        DeviceError: the local fleet broke; the run can be resumed.
    """
    known = known_run(found, order)
    run_id = known.id if known else intake.new_run_id()
    ended = known is not None and cascades.stages_of(found.engine, run_id)[-1].state.ended
    with fleet_for(found, order.spec, choice, needed=not ended) as fleet_lives:
        with detaching(found, run_id, fleet_lives) as check:
            begin(found, order, known, run_id)
            with progress_line(found.engine, run_id, err, total_items=data.validation.valid * order.spec.repeat):
                data.feed(found, run_id, order.spec, check)
                wait_for_end(found.engine, run_id, check=check)
            follow_stages(found, run_id, check)
        finish(found, run_id, outlet)


def begin(found: Services, order: RunRequest, known: RunStatus | None, run_id: str) -> None:
    """Open the run of an order, unless it is known already, and say what happens."""
    if known is None:
        found.coordination  # noqa: B018 - a broker that cannot be reached is said before a run is opened
        intake.create_run(found.engine, order.spec, run_id=run_id, name=order.name)
        say(f"run {order.name or run_id} of {order.source}")
    elif known.state.ended:
        say(f"run {known.name} has ended already; this is its report")
    else:
        say(f"going on with run {known.name}; {known.counts.accepted:,} items were submitted before")


def go_on(
    found: Services, run: RunStatus, choice: LocalFleetOptions, outlet: ReportOptions, data: Checked | None = None
) -> None:
    """Follow a run to its end, after feeding it what it lacks, and show the report.

    Raises:
        UsageError: the run is live traffic.
        RunError: the run ended other than asked.
    """
    if run.spec.lane is Lane.LIVE:
        raise UsageError(f"{run.name} is live traffic, which has no end: `libra bench status` shows where it stands")
    ended = cascades.stages_of(found.engine, run.id)[-1].state.ended
    with fleet_for(found, run.spec, choice, needed=not ended) as fleet_lives:
        with detaching(found, run.id, fleet_lives) as check:
            with progress_line(found.engine, run.id, err, total_items=run.expected):
                if data is not None:
                    data.feed(found, run.id, run.spec, check)
                wait_for_end(found.engine, run.id, check=check)
            follow_stages(found, run.id, check)
        finish(found, run.id, outlet)


def follow_stages(found: Services, run_id: str, check: Callable[[], None]) -> None:
    """Follow a cascade from its first run, which has ended, to the end of its last stage; nothing for other runs."""
    while (stages := cascades.stages_of(found.engine, run_id))[-1].state.ended is False:
        stage = stages[-1]
        say(f"what was not sure goes on to {stage.spec.guard}: run {stage.name}")
        with progress_line(found.engine, stage.id, err, total_items=stage.expected):
            wait_for_end(found.engine, stage.id, check=check)


@contextmanager
def fleet_for(
    found: Services,
    spec: RunSpec,
    choice: LocalFleetOptions,
    *,
    needed: bool = True,
    worker_options: Sequence[str] = (),
) -> Iterator[Callable[[], None]]:
    """A local fleet where one is wanted, or a word about a missing worker; yields what checks on the fleet.

    A cascade has a worker for each of its guards.
    """
    guards = [GuardChoice(spec.guard, spec.checkpoint), *(GuardChoice(s.guard, s.checkpoint) for s in spec.stages)]
    with ExitStack() as stack:
        checks = [
            stack.enter_context(_fleet_of(found, guard, choice, needed=needed, worker_options=worker_options))
            for guard in guards
        ]

        def check_all() -> None:
            for check in checks:
                check()

        yield check_all


@contextmanager
def _fleet_of(
    found: Services, guard: GuardChoice, choice: LocalFleetOptions, *, needed: bool, worker_options: Sequence[str]
) -> Iterator[Callable[[], None]]:
    if needed and (choice.local or (choice.local is None and found.embedded)):
        checkpoint = ["--checkpoint", guard.checkpoint] if guard.checkpoint else []
        options = ["--devices", choice.devices, *checkpoint, *worker_options]
        with local_fleet(found, guard.name, worker_options=options, say=lambda what: say(f"{what} …")) as fleet:
            yield fleet.check
        return
    if needed and not worker_is_up(found, guard.name):
        say(f"no worker for {guard.name} is up yet: start one with `libra worker --guard {guard.name}`")
    yield lambda: None


@contextmanager
def detaching(found: Services, run_id: str, check: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Ctrl-C leaves the run as it is and says how to come back.

    It takes effect where the yielded function is called, which then calls `check`.
    """
    try:
        with deferred_interrupt() as interrupted:

            def check_both() -> None:
                interrupted()
                check()

            yield check_both
    except KeyboardInterrupt:
        status = reading.find_run(found.engine, run_id)
        say("\nnothing was submitted" if status is None else _how_to_come_back(status, embedded=found.embedded))
        raise


def _how_to_come_back(run: RunStatus, *, embedded: bool) -> str:
    data = " FILE" if run.spec.source == "-" else ""
    command = (
        f"resume {shlex.quote(run.name)}{data}" if run.state is RunState.OPEN else f"watch {shlex.quote(run.name)}"
    )
    fate = "it rests while no fleet runs" if embedded else "the fleet goes on with what is submitted"
    return f"\ndetached from run {run.name}; {fate}. Come back with: libra bench {command}"


def prepare(outlet: ReportOptions) -> None:
    """See that the report's files can be written, before hours of work go into it.

    Raises:
        UsageError: they cannot.
    """
    for option, file in (("--out", outlet.file), ("--html", outlet.page)):
        if file is not None:
            writable(option, file)
    if outlet.page is not None:
        page_writer()


def writable(option: str, file: Path) -> None:
    """See that an option's file can be written; its folder is made.

    Raises:
        UsageError: it cannot.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror}") from error


def finish(found: Services, run_id: str, outlet: ReportOptions) -> None:
    """Show and write the report of a run that has ended.

    Raises:
        RunError: it was cancelled, an average is too low, or items died.
    """
    stored = report_of(found, run_id)
    if stored is None:
        raise RunError(f"run {run_id} ended without a report")
    price = found.settings.price_per_device_hour
    print_report(stored, as_json=outlet.as_json, price_per_device_hour=price)
    if outlet.file:
        outlet.file.write_text(to_json(stored, price_per_device_hour=price) + "\n", encoding="utf-8")
        say(f"report written to {outlet.file}")
    if outlet.page:
        write_page(found, stored, outlet.page)
    _judge_outcome(stored, outlet.gates)


def report_of(found: Services, run_id: str) -> RunReport | None:
    """The report of a run that has ended, or None; of a cascade's first run, over all of its stages.

    Raises:
        UsageError: a stage of the cascade has not ended.
    """
    stages = cascades.stages_of(found.engine, run_id)
    if stages[0].spec.stages and stages[0].state.ended:
        return cascade_report(found.engine, stages)
    return reading.stored_report(found.engine, run_id)


def write_page(found: Services, report: RunReport, file: Path, *, with_text: bool = True) -> None:
    """Write the page of a run and name it.

    Raises:
        UsageError: what pages are drawn with is not installed, or the file cannot be written.
    """
    page = page_writer()(report, gather(found.engine, report), with_text=with_text)
    save_page(file, page)


def save_page(file: Path, page: str) -> None:
    """Write a page and name it.

    Raises:
        UsageError: it cannot be written.
    """
    writable("--html", file)
    file.write_text(page, encoding="utf-8")
    say(f"page written to {file}")


def page_writer() -> Callable[..., str]:
    """What writes the page of a run; loaded when it is asked for, since drawing takes a second to load.

    Raises:
        UsageError: what it draws with is not installed.
    """
    try:
        from producer.report.page import run_page  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"pages need another package ({error}): pip install 'libra-fleet[report]'") from error
    return run_page


def _judge_outcome(report: RunReport, gates: Sequence[QualityGate]) -> None:
    if report.state is RunState.CANCELLED:
        raise RunError(f"run {report.name} was cancelled")
    average = next((group for group in report.groups if group.kind == "average"), None)
    for gate in gates:
        metric = average.metric(gate.metric) if average else None
        if metric is None or metric.value is None:
            raise RunError(f"{gate.metric} is undefined: {metric and metric.undefined}")
        if metric.value < gate.floor:
            raise RunError(f"{gate.metric} is {metric.value:.4f}, below {gate.floor:g}")
    if report.counts.dead:
        raise RunError(f"{report.counts.dead:,} items died; their reasons are in the report")
