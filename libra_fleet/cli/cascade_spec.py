"""A cascade as it is written on a command line: `cascade:small@0.02:0.98>large`."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import click
from pydantic import ValidationError

from infra.guard_catalogue import GUARDS
from libra_fleet.cli.options import GuardChoice, guard_named, mode_for
from schemas.guards import Mode
from schemas.runs import NextStage

PREFIX: Final = "cascade:"
SURE_BELOW: Final = 0.05
SURE_ABOVE: Final = 0.95


class StageSpec(NamedTuple):
    """One stage as written: its guard, and its thresholds where it names them."""

    guard: GuardChoice
    sure: tuple[float, float] | None = None


def parse_stages(value: str) -> list[StageSpec]:
    """The stages of a cascade as written.

    Raises:
        click.BadParameter: fewer than two stages, an unknown guard, or thresholds that are none.
    """
    written = [_stage(text.strip()) for text in value.removeprefix(PREFIX).split(">")]
    if len(written) < 2:
        raise click.BadParameter(f"{value!r}: a cascade has two stages or more, such as cascade:small>large")
    names = [stage.guard.name for stage in written]
    if len(set(names)) < len(names):
        raise click.BadParameter(f"{value!r}: each stage needs a guard of its own")
    if written[-1].sure is not None:
        raise click.BadParameter(f"{value!r}: the last stage settles everything: it takes no thresholds")
    return written


def _stage(text: str) -> StageSpec:
    """NAME[@BELOW:ABOVE][=CHECKPOINT]."""
    head, equals, checkpoint = text.partition("=")
    name, at, sure = head.partition("@")
    guard = guard_named(f"{name}{equals}{checkpoint}")
    if not at:
        return StageSpec(guard, None)
    try:
        below, above = map(float, sure.split(":"))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected NAME@BELOW:ABOVE, such as libra-tiny@0.02:0.98") from None
    return StageSpec(guard, (below, above))


def next_stages(written: list[StageSpec], sure: tuple[float, float]) -> tuple[NextStage, ...]:
    """What follows on the first stage; `sure` are the thresholds of the stages that name none.

    Raises:
        click.UsageError: thresholds out of order or range.
    """
    stages = []
    for before, after in itertools.pairwise(written):
        below, above = before.sure or sure
        try:
            stages.append(
                NextStage(
                    guard=after.guard.name,
                    checkpoint=after.guard.checkpoint,
                    mode=mode_for(after.guard, None) if after is written[-1] else scoring_mode(after.guard),
                    sure_below=below,
                    sure_above=above,
                )
            )
        except ValidationError as error:
            reason = error.errors(include_input=False, include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise click.UsageError(f"{before.guard.name}@{below:g}:{above:g}: {reason}") from error
    return tuple(stages)


def scoring_mode(guard: GuardChoice) -> Mode:
    """The first of a guard's modes that gives a score: without one a stage is sure of nothing.

    Raises:
        click.UsageError: it has none.
    """
    card = GUARDS.get(guard.name)
    if card is None:
        return Mode.SCORE
    mode = next((mode for mode in card.modes if mode is not Mode.GENERATE), None)
    if mode is None:
        raise click.UsageError(f"{guard.name} gives no score: it can only be a cascade's last stage")
    return mode
