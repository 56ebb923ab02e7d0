"""Options of the command line and what becomes of them: an order, a local fleet or none, what to do with a report.

Everything wrong in an option is said here, before anything is read or started.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import click

from infra.guard_catalogue import GUARDS
from infra.metrics import AVERAGED
from schemas.guards import DEFAULT_GUARD, Mode
from schemas.runs import RunSpec

P = ParamSpec("P")
R = TypeVar("R")
Command = Callable[..., R]


class GuardChoice(NamedTuple):
    """A guard by name, and the folder or hub id that a local worker is to load for it."""

    name: str
    checkpoint: str | None = None


@dataclass(frozen=True)
class RunRequest:
    """A data set to judge: what the run will be."""

    source: str
    spec: RunSpec
    name: str | None


class LocalFleetOptions(NamedTuple):
    """Whether to run a worker and a collector for the command (None: only with embedded servers), on which devices."""

    local: bool | None
    devices: str


class QualityGate(NamedTuple):
    """An average that must not be lower."""

    metric: str
    floor: float


class ReportOptions(NamedTuple):
    """Where a report goes, and what makes it a failure."""

    as_json: bool = False
    file: Path | None = None
    page: Path | None = None
    gates: tuple[QualityGate, ...] = ()


def _guard(_: click.Context, __: click.Parameter, value: str) -> GuardChoice:
    return guard_named(value)


def guard_named(value: str) -> GuardChoice:
    """The guard that NAME or NAME=CHECKPOINT stands for.

    Raises:
        click.BadParameter: it has no card and no checkpoint.
    """
    name, _equals, checkpoint = value.partition("=")
    if not name or (name not in GUARDS and not checkpoint):
        hint = _did_you_mean(name, GUARDS)
        raise click.BadParameter(
            f"no guard named {name!r}{hint} (`libra guards` lists them; NAME=FOLDER runs your own)"
        )
    return GuardChoice(name, absolute(checkpoint) if checkpoint else None)


def _gates(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[QualityGate, ...]:
    return tuple(map(_gate, values))


def _gate(value: str) -> QualityGate:
    metric, _equals, number = value.partition("=")
    try:
        floor = float(number)
    except ValueError:
        floor = math.nan
    if not math.isfinite(floor):
        raise click.BadParameter(f"{value!r}: expected METRIC=VALUE, such as accuracy=0.85")
    if metric not in AVERAGED:
        raise click.BadParameter(f"no average named {metric!r}{_did_you_mean(metric, AVERAGED)}")
    return QualityGate(metric, floor)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.4)
    return f"; did you mean {', '.join(close)}?" if close else ""


def absolute(source: str) -> str:
    """A path that still holds when the run is resumed in another folder; what is no path stays as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def stacked(command: Command[R], *options: Callable[[Command[R]], Command[R]]) -> Command[R]:
    """The command with these options, in this order on its help page."""
    return functools.reduce(lambda stacked, option: option(stacked), reversed(options), command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
price_option = click.option(
    "--price-per-gpu-hour",
    "price_per_device_hour",
    type=click.FloatRange(min=0),
    metavar="PRICE",
    help="What an hour of a device costs, in your currency. Default: LIBRA_PRICE_PER_DEVICE_HOUR.",
)
html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a page to this file: one file, to be opened in any browser.",
)
guard_option = click.option(
    "--guard",
    metavar="NAME[=CHECKPOINT]",
    callback=_guard,
    default=DEFAULT_GUARD,
    show_default=True,
    help="Guard by name; with a CHECKPOINT (folder or hub id) a local worker loads that.",
)
guard_argument = click.argument("guard", metavar="NAME[=CHECKPOINT]", callback=_guard)
mode_option = click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    help="How the verdict is obtained. Default: the first of the guard's modes (`libra guards`).",
)


analysis_option = click.option(
    "--analysis", is_flag=True, help="In mode generate, let the model write on after its verdict."
)


def cache_option(*, default: bool) -> Callable[[Command[R]], Command[R]]:
    """The option --cache/--no-cache with this default."""
    return click.option(
        "--cache/--no-cache",
        default=default,
        show_default=True,
        help="Take what a device answered before to the very same prompts.",
    )


def mode_for(guard: GuardChoice, mode: str | None) -> Mode:
    """The mode asked for, or the guard's usual one; one that its card does not have would only make dead items."""
    card = GUARDS.get(guard.name)
    if card is None:
        return Mode(mode or Mode.SCORE)
    if not card.modes:
        raise click.UsageError(f"{card.name} cannot be run ({card.status.value}): {card.note}")
    if mode is None:
        return card.modes[0]
    if Mode(mode) not in card.modes:
        raise click.UsageError(f"{card.name} has no mode {mode}; it has {', '.join(m.value for m in card.modes)}")
    return Mode(mode)


def takes_fleet(command: Command[R]) -> Command[R]:
    """Give a command the options of a local fleet, as one `fleet`."""

    @functools.wraps(command)
    def with_fleet(*, local: bool | None, devices: str, **rest: object) -> R:
        return command(fleet=LocalFleetOptions(local, devices), **rest)

    return stacked(
        with_fleet,
        click.option(
            "--local/--no-local",
            default=None,
            help="Run a worker and a collector for this command. Default: only with embedded servers.",
        ),
        click.option("--devices", default="all", show_default=True, help="Devices of a local worker: all, cpu, 0,1."),
    )


def takes_outlet(command: Command[R]) -> Command[R]:
    """Give a command the options of a report, as one `outlet`."""

    @functools.wraps(command)
    def with_outlet(
        *, as_json: bool, out: Path | None, html: Path | None, fail_under: tuple[QualityGate, ...], **rest: object
    ) -> R:
        return command(outlet=ReportOptions(as_json, out, html, fail_under), **rest)

    return stacked(
        with_outlet,
        click.option(
            "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report as JSON to this file."
        ),
        html_option,
        click.option(
            "--fail-under",
            metavar="METRIC=VALUE",
            callback=_gates,
            multiple=True,
            help="Exit 7 if this average is lower (for CI); repeatable.",
        ),
        json_option,
    )
