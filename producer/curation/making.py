"""The stages that make rows: combine, queries, augment, responses. What a writer writes is a run of the fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import click

from infra.errors import UsageError
from infra.servers.services import Services
from libra_fleet.cli.context import connected
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, guard_named, takes_fleet
from producer.curation import queries, responses
from producer.curation.asking import ask, texts_of
from producer.curation.augment import WAYS, augmented, reworded, rewording_items
from producer.curation.combine import combinations
from producer.curation.near_duplicates import distinct
from producer.curation.rows import Writer
from producer.curation.shown import folder_argument, say_done
from producer.curation.stage import Placed, carry_out, in_file, rows_of
from schemas.guards import Mode, is_writer
from schemas.items import Item

_seed_option: Final = click.option("--seed", type=int, default=1, show_default=True, help="Decides every draw.")
_licence_option: Final = click.option(
    "--licence", default="not stated", show_default=True, help="Licence of what a writer writes, for the provenance."
)
_server_option: Final = click.option(
    "--base-url", help="The writer runs on this OpenAI-compatible server (such as http://gpu1:8000/v1), not here."
)


def _writers(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[GuardChoice]:
    found = [guard_named(value) for value in values]
    if bad := next((writer.name for writer in found if not is_writer(writer.name)), None):
        raise click.BadParameter(
            f"{bad} is a guard; a model that writes is writer=CHECKPOINT or writer-NAME=CHECKPOINT"
        )
    if len({writer.name for writer in found}) < len(found):
        raise click.BadParameter("give each writer a name of its own: writer-a=…, writer-b=…")
    return found


@click.command()
@folder_argument
@click.option("--count", type=click.IntRange(min=1), default=390, show_default=True, help="Combinations to draw.")
@_seed_option
def combine(*, folder: Path, count: int, seed: int) -> None:
    """Draw combinations of elements, sub-categories in turn."""
    options = {"count": count, "seed": seed}
    made = carry_out(folder, "combinations", options, lambda: in_file("combinations", combinations(count, seed)))
    say_done(folder, ["combinations"], made=made)


@click.command(name="queries")
@folder_argument
@click.option("--per-combination", type=click.IntRange(min=1), default=10, show_default=True, help="Of each intent.")
@click.option("--writer", "writers", metavar="writer=CHECKPOINT", callback=_writers, multiple=True)
@_licence_option
@_server_option
@takes_fleet
def queries_(
    *,
    folder: Path,
    per_combination: int,
    writers: list[GuardChoice],
    licence: str,
    base_url: str | None,
    fleet: LocalFleetOptions,
) -> None:
    """Write harmful queries, and as many harmless ones with the same words.

    By a language model over the fleet where a writer is given, else by the built-in grammar.
    """
    if len(writers) > 1:
        raise UsageError("one --writer writes the queries; several answer them in `libra curate responses`")
    source = partial(rows_of, folder, "combinations")

    def make() -> Iterator[Placed]:
        if not writers:
            yield from in_file("queries", queries.grammar_queries(source(), per_combination))
            return
        with connected() as found:
            run = _ask_writer(
                found, fleet, writers[0], base_url, lambda: queries.writer_items(source(), per_combination)
            )
            writer = _writer(writers[0], licence)
            written = queries.written_queries(source(), per_combination, writer, texts_of(found, run))
            yield from in_file("queries", written)

    options = {"per_combination": per_combination, "writers": writers, "licence": licence if writers else None}
    made = carry_out(folder, "queries", options, make, made_of="combinations")
    say_done(folder, ["queries"], made=made)


@click.command()
@folder_argument
@click.option("--variants", type=click.IntRange(0, len(WAYS)), default=1, show_default=True, help="Of each query.")
@click.option(
    "--similarity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="What is nearer to an earlier query than this (Jaccard of 3-grams) is left out.",
)
@_seed_option
@click.option("--writer", "writers", metavar="writer=CHECKPOINT", callback=_writers, multiple=True)
@_licence_option
@_server_option
@takes_fleet
def augment(
    *,
    folder: Path,
    variants: int,
    similarity: float,
    seed: int,
    writers: list[GuardChoice],
    licence: str,
    base_url: str | None,
    fleet: LocalFleetOptions,
) -> None:
    """Reword and disguise queries, then leave out near-duplicates; a writer, if one is given, rewords each as well."""
    if len(writers) > 1:
        raise UsageError("one --writer rewords the queries")
    source = partial(rows_of, folder, "queries")

    def make() -> Iterator[Placed]:
        if not writers:
            yield from in_file("augmented", distinct(augmented(source(), variants, seed), similarity))
            return
        with connected() as found:
            run = _ask_writer(found, fleet, writers[0], base_url, lambda: rewording_items(source()))
            rows = reworded(source(), _writer(writers[0], licence), texts_of(found, run))
            yield from in_file("augmented", distinct(augmented(rows, variants, seed), similarity))

    drawn = {"variants": variants, "similarity": similarity, "seed": seed}
    recipe = {**drawn, "writers": writers, "licence": licence if writers else None}
    made = carry_out(folder, "augmented", recipe, make, made_of="queries")
    say_done(folder, ["augmented"], made=made)


@click.command(name="responses")
@folder_argument
@click.option("--writer", "writers", metavar="writer-NAME=CHECKPOINT", callback=_writers, multiple=True)
@_licence_option
@_server_option
@takes_fleet
def responses_(
    *, folder: Path, writers: list[GuardChoice], licence: str, base_url: str | None, fleet: LocalFleetOptions
) -> None:
    """Answer every query: by each writer, or in the grammar's manners (refusing, complying, neutral, hollow)."""
    source = partial(rows_of, folder, "augmented")

    def make() -> Iterator[Placed]:
        if not writers:
            yield from in_file("responses", responses.grammar_responses(source()))
            return
        with connected() as found:
            runs = {
                _writer(choice, licence): _ask_writer(
                    found, fleet, choice, base_url, lambda: responses.writer_items(source())
                )
                for choice in writers
            }
            read = {writer: texts_of(found, run) for writer, run in runs.items()}
            yield from in_file("responses", responses.written_responses(source(), read))

    options = {"writers": writers, "licence": licence if writers else None}
    made = carry_out(folder, "responses", options, make, made_of="augmented")
    say_done(folder, ["responses"], made=made)


def _writer(choice: GuardChoice, licence: str) -> Writer:
    """Who a writer is in a row's provenance: the hub id, or the folder's name."""
    place = choice.checkpoint or choice.name
    return Writer(choice.name, Path(place).name if Path(place).is_dir() else place, licence)


def _ask_writer(
    found: Services,
    fleet: LocalFleetOptions,
    writer: GuardChoice,
    base_url: str | None,
    items: Callable[[], Iterable[Item]],
) -> str:
    """The run in which a writer wrote; a local one is told of the server that runs its model.

    Raises:
        UsageError: a server is named, and no local worker is wanted that could ask it.
    """
    if base_url and fleet.local is False:
        raise UsageError("--base-url is for a local worker; elsewhere: libra worker --engine openai --base-url …")
    server = ("--engine", "openai", "--base-url", base_url) if base_url else ()
    return ask(found, fleet, writer, items, mode=Mode.GENERATE, worker_options=server)
