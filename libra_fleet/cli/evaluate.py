"""`libra eval`: measure models on a data set, from one word for each model to one page that compares them.

Says first in whose words each model is asked, and looks at its folder, its weights, the device and the memory; then
asks it about eight rows; only then the run begins. It is a run as those of `libra run start`, and stays in the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import click

from infra.errors import DeviceError, GuardError, LibraError, RunError, UsageError
from infra.ledger import intake
from infra.ledger.items import settled_of
from infra.ledger.runs import find_run
from infra.servers.services import Services
from infra.settings import Settings, load_settings
from libra_fleet.cli.compare import show_compared
from libra_fleet.cli.context import connected, detaching, fleet_for, wait_for_end
from libra_fleet.cli.models import Model, gathered_models, split_data
from libra_fleet.cli.options import (
    LocalFleetOptions,
    ReportOptions,
    absolute,
    family_option,
    mode_for,
    mode_option,
    name_option,
    require_sample,
    sample_limit_option,
    seed_option,
    takes_fleet,
    takes_reading,
    takes_report_options,
)
from libra_fleet.cli.run import Checked, checked, follow
from libra_fleet.cli.show import finish, prepare, say
from libra_fleet.doctor import Level
from libra_fleet.doctor.machine import check_checkpoint, check_devices
from producer.datasets import valid_items
from producer.intake.submit import seal
from producer.intake.submit import submit as submit_items
from schemas.items import Item, Label
from schemas.messages import Lane
from schemas.reading import Reading
from schemas.runs import RunSpec
from schemas.verdicts import Outcome

_ROWS_ASKED: Final = 8
_ROWS_LOOKED_AT: Final = 5_000
_ERRORS: Final[dict[str, type[LibraError]]] = {
    "checkpoint": GuardError,
    "devices": UsageError,
    "device memory": DeviceError,
}
"""What a finding of the examination is as an error, by the name of its check; else a GuardError."""


@dataclass(frozen=True)
class _Job:
    """A model and the run that it is asked for."""

    model: Model
    spec: RunSpec
    run_name: str | None
    report: ReportOptions
    shown: bool

    @property
    def name(self) -> str:
        return self.spec.guard


@click.command(name="eval")
@click.argument("arguments", metavar="MODEL… [DATA]", nargs=-1, required=True)
@click.option("--data", help="The data set. Default: the last argument if it is no model, else `demo`.")
@family_option
@mode_option
@name_option
@sample_limit_option
@seed_option
@click.option("--skip-invalid", is_flag=True, help="List bad rows in the report instead of refusing the data.")
@click.option("--tokenizer", metavar="FOLDER", help="Of a server: folder or hub id of the model's tokenizer.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Type of the weights.")
@click.option("--devices-per-worker", type=click.IntRange(min=1), help="Devices that one model is spread over.")
@click.option("--max-batch-tokens", type=click.IntRange(min=16), help="Token budget of a batch. Default: by device.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings along.")
@takes_reading
@takes_fleet
@takes_report_options
def evaluate(
    *,
    arguments: tuple[str, ...],
    data: str | None,
    family: str | None,
    mode: str | None,
    name: str | None,
    limit: int | None,
    seed: int | None,
    skip_invalid: bool,
    tokenizer: str | None,
    dtype: str | None,
    devices_per_worker: int | None,
    max_batch_tokens: int | None,
    trust_remote_code: bool,
    reading: Reading | None,
    fleet: LocalFleetOptions,
    report_options: ReportOptions,
) -> None:
    """Measure models on a data set.

    MODEL is a guard's name (`libra guards`), a checkpoint folder, a hub id, BASE+ADAPTER, or the address of a server
    such as http://gpu1:8000/v1. DATA is whatever `libra run start` takes. Several models end on one page.

    Exit 7 if no answer of a model can be read: the reasons and the families to try are printed.
    """
    require_sample(limit, seed)
    prepare(replace(report_options, out=None))
    words, source = split_data(arguments, data)
    options = _worker_options(dtype, devices_per_worker, max_batch_tokens, trust_remote_code=trust_remote_code)
    jobs = []
    for model in gathered_models(words, family, tokenizer):
        say(f"{model.guard.name}: {model.words.said}")
        several = len(words) > 1
        spec = model.guard.spec(
            mode_for(model.guard, mode, model.family),
            absolute(source),
            lane=Lane.BULK,
            limit=limit,
            seed=seed,
            skip_invalid=skip_invalid,
            family=model.family,
            reading=reading,
        )
        jobs.append(
            _Job(
                replace(model, options=(*model.options, *options)),
                spec,
                run_name=f"{name}-{model.guard.name}" if name and several else name,
                report=_own_report(report_options, model.guard.name) if several else report_options,
                shown=not (several and report_options.as_json),
            )
        )
    for job in jobs:
        prepare(job.report)
    settings = load_settings()
    if fleet.local or (fleet.local is None and settings.redis_url is None):
        for job in jobs:
            _examine(job, fleet.devices, settings)
    with checked(source, jobs[0].spec) as data_set, connected() as found:
        found.coordination  # noqa: B018 - servers that cannot be reached are said before a model is loaded
        found.engine  # noqa: B018
        for job in jobs:
            _require_new(found, job.run_name)
        _measure_all(found, jobs, data_set, fleet, report_options)


def _require_new(found: Services, name: str | None) -> None:
    """See that a run's name is free, before a model is loaded for it."""
    if name and find_run(found.engine, name):
        raise UsageError(f"there is a run named {name} already: give another --name")


def _own_report(options: ReportOptions, name: str) -> ReportOptions:
    """What becomes of one report of several: its JSON goes to a file of its own, and the page is the comparison's."""
    out = options.out and options.out.with_stem(f"{options.out.stem}-{name}")
    return replace(options, as_json=False, out=out, html=None)


def _measure_all(
    found: Services, jobs: Sequence[_Job], data: Checked, fleet: LocalFleetOptions, report_options: ReportOptions
) -> None:
    """One model after the other; what one of several fails at is said at the end, after the comparison of the rest."""
    runs: list[str] = []
    failed: list[LibraError] = []
    for job in jobs:
        try:
            _measure(found, job, data, fleet, runs.append)
        except (RunError, GuardError, DeviceError) as error:
            failed.append(error)
            if len(jobs) > 1:
                say(str(error))
    if runs and len(jobs) > 1:
        show_compared(found, runs, html=report_options.html, as_json=report_options.as_json)
    if failed:
        raise failed[0] if len(jobs) == 1 else RunError(f"{len(failed)} of {len(jobs)} models ended other than asked")


def _worker_options(
    dtype: str | None, devices_per_worker: int | None, max_batch_tokens: int | None, *, trust_remote_code: bool
) -> tuple[str, ...]:
    given = {
        "--dtype": dtype,
        "--devices-per-worker": devices_per_worker,
        "--max-batch-tokens": max_batch_tokens,
    }
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    return (*words, *(["--trust-remote-code"] if trust_remote_code else []))


def _examine(job: _Job, devices: str, settings: Settings) -> None:
    """Refuse what cannot work before anything starts: the folder, the weights, the devices, their memory."""
    if job.model.is_server:
        return
    guard, location = job.model.guard
    on_devices = check_devices(devices, guard, location, visible=settings.cuda_visible_devices)
    for finding in (*on_devices, *check_checkpoint(guard, location, job.spec.family)):
        said = f"{finding.what} ({finding.do})"
        if finding.level is Level.ERROR:
            raise _ERRORS.get(finding.check, GuardError)(said)
        if finding.level is Level.WARNING:
            say(said)


def _measure(found: Services, job: _Job, data: Checked, fleet: LocalFleetOptions, ended: Callable[[str], None]) -> None:
    """Ask a model about eight rows, then about all; its report is written and printed, `ended` gets the run's id."""
    with fleet_for(found, job.spec, fleet, worker_options=job.model.options, says_words=False) as fleet_lives:
        _ask_a_few(found, job, data, fleet_lives)
        run_id = intake.new_run_id()
        with detaching(found, run_id, fleet_lives) as check:
            intake.create_run(found.engine, job.spec, run_id=run_id, name=job.run_name)
            say(f"run {job.run_name or run_id}: {job.name} on {data.dataset.name}, {data.validation.valid:,} items")
            follow(found, run_id, job.spec, check, data=data, total_items=data.validation.valid)
        ended(run_id)
        finish(found, run_id, job.report, shown=job.shown)


class _Asked(NamedTuple):
    """The answers to a few rows: how many could be read, how many are right, and the reasons of the rest."""

    readable: int
    right: int
    labelled: int
    labels: Counter[Label]
    reasons: Counter[str]


def _ask_a_few(found: Services, job: _Job, data: Checked, fleet_lives: Callable[[], None]) -> None:
    """Judge eight rows, of both labels where there are both, and stop where no answer can be read.

    Raises:
        RunError: none can be.
    """
    items = _few(data)
    spec = job.spec.model_copy(update={"limit": len(items), "source": f"the first rows of {data.dataset.name}"})
    run_id = intake.new_run_id()
    with detaching(found, run_id, fleet_lives) as check:
        intake.create_run(found.engine, spec, run_id=run_id, name=f"preflight-{run_id}")
        submit_items(found, run_id, spec, items, check=check)
        seal(found, run_id)
        wait_for_end(found.engine, run_id, check=check)
    asked = _answers(found, run_id, items)
    if not asked.readable:
        raise RunError(
            f"none of the first {len(items)} answers of {job.name} can be read:{_why(asked)}\n{_advice(job)}"
        )
    say(f"preflight: {asked.readable} of {len(items)} answers can be read, {asked.right} of {asked.labelled} are right")
    if asked.reasons:
        say(f"the others:{_why(asked)}")
    if len(asked.labels) == 1 and len({item.truth for item in items if item.truth}) > 1:
        say(f"all of them are {next(iter(asked.labels))}: if that goes on, it is no guard, or not asked in its words")


def _few(data: Checked) -> list[Item]:
    """Eight items: four of each label as far as there are, else the first ones."""
    by_label: dict[Label | None, list[Item]] = {Label.SAFE: [], Label.UNSAFE: [], None: []}
    for at, row in enumerate(valid_items(data.dataset, data.validation)):
        by_label[row.item.truth].append(row.item)
        enough = all(len(by_label[label]) >= _ROWS_ASKED // 2 for label in Label)
        if enough or at >= _ROWS_LOOKED_AT:
            break
    half = _ROWS_ASKED // 2
    chosen = [*by_label[Label.SAFE][:half], *by_label[Label.UNSAFE][:half]]
    rest = [*by_label[Label.SAFE][half:], *by_label[Label.UNSAFE][half:], *by_label[None]]
    return [*chosen, *rest][:_ROWS_ASKED]


def _answers(found: Services, run_id: str, items: Sequence[Item]) -> _Asked:
    settled = settled_of(found.engine, run_id, [item.id for item in items])
    ends = [(item, end) for item in items for end in settled.get(item.id, [])]
    read = [(item, end) for item, end in ends if end.outcome is Outcome.SCORED]
    return _Asked(
        readable=len(read),
        right=sum(end.label is item.truth for item, end in read),
        labelled=sum(item.truth is not None for item, _ in read),
        labels=Counter(end.label for _, end in read if end.label),
        reasons=Counter(end.reason or end.outcome.value for _, end in ends if end.outcome is not Outcome.SCORED),
    )


def _why(asked: _Asked) -> str:
    return "".join(f"\n  {count}: {reason}" for reason, count in asked.reasons.most_common(5))


def _advice(job: _Job) -> str:
    from worker.guards.family import families  # noqa: PLC0415 - only where something is wrong

    return (
        f"  it was {job.model.words.said}\n"
        f"  other words: --family {'|'.join(families())}\n"
        "  a model that answers nothing in any words is no guard"
    )
