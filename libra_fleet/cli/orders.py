"""What a run of the bench is asked for on a command line: a data set, a guard or a cascade of them, and how.

Everything wrong in an option is said here, before anything is read or started.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import click

from libra_fleet.cli.cascade_spec import (
    PREFIX,
    SURE_ABOVE,
    SURE_BELOW,
    StageSpec,
    next_stages,
    parse_stages,
    scoring_mode,
)
from libra_fleet.cli.options import (
    Command,
    R,
    RunRequest,
    absolute,
    analysis_option,
    cache_option,
    guard_named,
    mode_for,
    mode_option,
    stacked,
)
from schemas.guards import DEFAULT_GUARD, Mode
from schemas.messages import Lane
from schemas.runs import RunSpec

_LONGEST_NAME: Final = 100


def _shard(_: click.Context, __: click.Parameter, value: str) -> tuple[int, int]:
    index, _slash, count = value.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise click.BadParameter(f"{value!r}: expected I/N with 0 ≤ I < N, such as 0/4")
    return int(index), int(count)


def _name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None or (0 < len(value) <= _LONGEST_NAME and value.isprintable() and value == value.strip()):
        return value
    raise click.BadParameter(f"1 to {_LONGEST_NAME} printable characters, no space at either end")


name_option = click.option("--name", callback=_name, help="A name of your own for the run.")


_shard_option = click.option(
    "--shard",
    metavar="I/N",
    callback=_shard,
    default="0/1",
    help="Only every N-th row, beginning with row I (the first is 0).",
)

_guard_option = click.option(
    "--guard",
    metavar="NAME[=CHECKPOINT]",
    callback=lambda _, __, value: parse_stages(value) if value.startswith(PREFIX) else [StageSpec(guard_named(value))],
    default=DEFAULT_GUARD,
    show_default=True,
    help="Guard by name; with a CHECKPOINT (folder or hub id) a local worker loads that. 'cascade:SMALL>LARGE': "
    "what SMALL is not sure of goes on to LARGE; SMALL@0.02:0.98 names its thresholds (`libra cascade fit`).",
)


def _sure_option(side: str, default: float, ends: str) -> Callable[[Command[R]], Command[R]]:
    return click.option(
        f"--sure-{side}",
        type=click.FloatRange(0, 1),
        default=default,
        show_default=True,
        help=f"Cascade: a stage without thresholds settles what it scores {ends}.",
    )


_OPTIONS: Final = (
    click.argument("source"),
    _guard_option,
    _sure_option("below", SURE_BELOW, "at most so"),
    _sure_option("above", SURE_ABOVE, "at least so"),
    mode_option,
    click.option(
        "--name", callback=_name, help="A name of your own; given again, the same command goes on with the run."
    ),
    _shard_option,
    click.option("--limit", type=click.IntRange(min=1), help="At most so many rows."),
    click.option("--seed", type=int, help="With --limit: a random sample by this seed, not the first rows."),
    click.option("--repeat", type=click.IntRange(min=1), default=1, help="Judge every item so many times."),
    click.option("--skip-invalid", is_flag=True, help="List bad rows in the report instead of refusing the data."),
    cache_option(default=False),
    analysis_option,
)


def takes_order(command: Command[R]) -> Command[R]:
    """Give a command SOURCE and the options of a run, as one `order`."""

    @functools.wraps(command)
    def ordered(
        *,
        source: str,
        guard: list[StageSpec],
        mode: str | None,
        sure_below: float,
        sure_above: float,
        name: str | None,
        shard: tuple[int, int],
        limit: int | None,
        seed: int | None,
        repeat: int,
        skip_invalid: bool,
        cache: bool,
        analysis: bool,
        **rest: object,
    ) -> R:
        if seed is not None and limit is None:
            raise click.UsageError("--seed chooses the sample that --limit takes: give both, or neither")
        if cache and repeat > 1:
            raise click.UsageError("--repeat judges every item anew: it goes with no --cache")
        first = guard[0].guard
        is_cascade = len(guard) > 1
        if is_cascade and (mode is not None or analysis or repeat > 1):
            raise click.UsageError(
                "a cascade's stages choose their modes: it goes with no --mode, --analysis, --repeat"
            )
        chosen = scoring_mode(first) if is_cascade else mode_for(first, mode)
        spec = RunSpec(
            guard=first.name,
            checkpoint=first.checkpoint,
            mode=chosen,
            lane=Lane.BULK,
            source=absolute(source) if source else source,
            shard_index=shard[0],
            shard_count=shard[1],
            limit=limit,
            repeat=repeat,
            seed=seed,
            skip_invalid=skip_invalid,
            cache=cache,
            verdict_only=chosen is Mode.GENERATE and not analysis,
            stages=next_stages(guard, (sure_below, sure_above)),
        )
        return command(order=RunRequest(source, spec, name), **rest)

    return stacked(ordered, *_OPTIONS)
