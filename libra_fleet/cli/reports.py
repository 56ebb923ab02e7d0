"""Where the report of a run goes: terminal, JSON, a file, a page; and what makes the command fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from infra.errors import RunError, UsageError
from infra.ledger.runs import stages_of, stored_report
from infra.servers.services import Services
from libra_fleet.cli.options import QualityGate, ReportOptions
from libra_fleet.cli.show import print_report, say
from producer.report.cascade import cascade_report
from producer.report.facts import to_json
from producer.report.run_details import gather
from schemas.runs import RunReport, RunState


def prepare(report_options: ReportOptions) -> None:
    """See that the report's files can be written, before hours of work go into it.

    Raises:
        UsageError: they cannot.
    """
    for option, file in (("--out", report_options.file), ("--html", report_options.page)):
        if file is not None:
            writable(option, file)
    if report_options.page is not None:
        pages()


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


def finish(found: Services, run_id: str, report_options: ReportOptions) -> None:
    """Show and write the report of a run that has ended.

    Raises:
        RunError: it was cancelled, an average is too low, or items died.
    """
    stored = report_of(found, run_id)
    if stored is None:
        raise RunError(f"run {run_id} ended without a report")
    price = found.settings.price_per_device_hour
    print_report(stored, as_json=report_options.as_json, price_per_device_hour=price)
    if report_options.file:
        report_options.file.write_text(to_json(stored, price_per_device_hour=price) + "\n", encoding="utf-8")
        say(f"report written to {report_options.file}")
    if report_options.page:
        write_page(found, stored, report_options.page)
    _require_outcome(stored, report_options.gates)


def report_of(found: Services, run_id: str) -> RunReport | None:
    """The report of a run that has ended, or None; of a cascade's first run, over all of its stages.

    Raises:
        UsageError: a stage of the cascade has not ended.
    """
    stages = stages_of(found.engine, run_id)
    if stages[0].spec.stages and stages[0].state.ended:
        return cascade_report(found.engine, stages)
    return stored_report(found.engine, run_id)


def write_page(found: Services, report: RunReport, file: Path, *, with_text: bool = True) -> None:
    """Write the page of a run and name it.

    Raises:
        UsageError: what pages are drawn with is not installed, or the file cannot be written.
    """
    save_page(file, pages().run_page(report, gather(found.engine, report), with_text=with_text))


def save_page(file: Path, page: str) -> None:
    """Write a page and name it.

    Raises:
        UsageError: it cannot be written.
    """
    writable("--html", file)
    file.write_text(page, encoding="utf-8")
    say(f"page written to {file}")


def pages() -> ModuleType:
    """The module that writes pages; loaded when it is asked for, since drawing takes a second to load.

    Raises:
        UsageError: what it draws with is not installed.
    """
    try:
        from producer.report import page  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"pages need another package ({error}): pip install 'libra-fleet[report]'") from error
    return page


def _require_outcome(report: RunReport, gates: Sequence[QualityGate]) -> None:
    """Let the command fail where its run did.

    Raises:
        RunError: it was cancelled, an average is too low, or items died.
    """
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
